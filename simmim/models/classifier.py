"""An encoder with a classification head."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from simmim.models.heads import ClassificationHead
from simmim.models.swin import SwinTransformer

# What fine-tuning trains: the whole classifier, or only its head.
Mode = Literal["full", "linear"]


class Classifier(nn.Module):
    """An encoder with average pooling and one linear layer."""

    def __init__(self, encoder: SwinTransformer, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = ClassificationHead(encoder.channels[-1], num_classes)

    def forward(self, images: Float[Tensor, "b c H W"]) -> Float[Tensor, "b classes"]:
        """The class logits."""
        features = self.encoder.encode(self.encoder.embed(images))
        logits: Tensor = self.head(features)
        return logits
