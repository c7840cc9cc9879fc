"""What stands on the encoder: pixels for SimMIM, classes for a classifier.

SimMIM: arXiv 2111.09886; classification as Swin's: arXiv 2103.14030.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class ReconstructionHead(nn.Module):
    """One linear layer a token, its outputs laid out as the token's pixels (SimMIM, section 3.4).

    `stride` is the side of those in pixels, `out_channels` the image's.
    """

    def __init__(self, channels: int, stride: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, stride**2 * out_channels)
        self.shuffle = nn.PixelShuffle(stride)

    def forward(
        self, features: Float[Tensor, "b h w c"], tokens: Int[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "_images out_c _H _W"]:
        """The image that the tokens predict, at `stride` pixels a token.

        Or, of each image, the squares of `stride` pixels that these `tokens` (numbered row by row)
        predict, as `b · n` images.
        """
        if tokens is not None:
            rows = torch.arange(len(features), device=features.device).unsqueeze(1)
            features = features.flatten(1, 2)[rows, tokens].view(-1, 1, 1, features.shape[-1])
        pixels: Tensor = self.shuffle(self.linear(features).permute(0, 3, 1, 2))
        return pixels


class ClassificationHead(nn.Module):
    """Global average pooling, then one linear layer."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b classes"]:
        """Logits of each class."""
        logits: Tensor = self.linear(features.mean(dim=(1, 2)))
        return logits
