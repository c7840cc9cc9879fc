"""An encoder with a head for labelled images."""

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from simmim.models.heads import ClassificationHead
from simmim.models.swin import SwinTransformer

# What fine-tuning trains: the whole model, or only its head.
Mode = Literal["full", "linear"]


class HeadedEncoder(nn.Module):
    """An encoder, and a head that makes outputs of its last features: the model of any task.

    `output_name` says what the outputs are.
    """

    output_name: ClassVar[str] = "logits"

    def __init__(self, encoder: SwinTransformer, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, images: Float[Tensor, "b c H W"]) -> Float[Tensor, "b outputs"]:
        """The head's outputs for normalised images."""
        features = self.encoder.encode(self.encoder.embed(images))
        outputs: Tensor = self.head(features)
        return outputs


class Classifier(HeadedEncoder):
    """An encoder with average pooling and one linear layer; its outputs are logits."""

    head: ClassificationHead

    def __init__(self, encoder: SwinTransformer, num_classes: int) -> None:
        super().__init__(encoder, ClassificationHead(encoder.channels[-1], num_classes))
