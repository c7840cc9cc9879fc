"""An encoder with a head that predicts numbers in their own units."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from simmim.models.classifier import Classifier, HeadedEncoder
from simmim.models.heads import ClassificationHead
from simmim.models.swin import SwinTransformer


class RegressionHead(ClassificationHead):
    """Average pooling, one linear layer, and a fixed scale: it learns standardised numbers.

    `mean` and `std` are those of the training targets; outputs are in the targets' own units.
    """

    mean: Float[Tensor, " outputs"]
    std: Float[Tensor, " outputs"]

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(channels, outputs)
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("std", torch.ones(outputs))

    def set_scale(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Sets the mean and standard deviation of the targets."""
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))

    def forward(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b outputs"]:
        """The predicted numbers, in float32 also under autocast."""
        standardised: Tensor = super().forward(features)
        return standardised.float() * self.std + self.mean


class Regressor(HeadedEncoder):
    """An encoder that predicts so many `outputs`, one or several numbers an image."""

    output_name = "predictions"
    head: RegressionHead

    def __init__(self, encoder: SwinTransformer, outputs: int) -> None:
        super().__init__(encoder, RegressionHead(encoder.channels[-1], outputs))

    @torch.no_grad()
    def as_classifier(self) -> Classifier:
        """The same outputs by one linear layer, which takes the scale in."""
        head = self.head
        plain = Classifier(self.encoder, len(head.mean))
        linear: nn.Linear = plain.head.linear
        linear.weight.copy_(head.linear.weight * head.std[:, None])
        linear.bias.copy_(head.linear.bias * head.std + head.mean)
        return plain.train(self.training)
