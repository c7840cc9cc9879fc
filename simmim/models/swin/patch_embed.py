"""Patch embedding of the image, and patch merging between stages.

Swin Transformer (arXiv 2103.14030), section 3.1; V2 (arXiv 2111.09883) merges with its norm last.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Norm = Literal["res_post", "pre"]


class PatchEmbedding(nn.Module):
    """Cuts the image into patches and embeds each with one linear layer and a LayerNorm.

    `patch_size` is the side of a patch in pixels.
    """

    def __init__(self, in_channels: int, channels: int, patch_size: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, channels, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: Float[Tensor, "b in_c H W"]) -> Float[Tensor, "b h w c"]:
        """Returns one token per patch."""
        return self.norm(self.projection(images).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Merges each 2×2 tokens into one with twice the channels.

    The norm follows the linear layer in V2 (`norm="res_post"`) and precedes it in V1 (`"pre"`).
    """

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.norm_first = norm == "pre"
        self.norm = nn.LayerNorm(4 * channels if self.norm_first else 2 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h2 w2 c2"]:
        """Halves height and width (both even), doubles the channels."""
        rows = (features[:, 0::2], features[:, 1::2])
        # The published weights expect this order: the left column downwards, then the right one.
        joined = torch.cat([row[:, :, column::2] for column in (0, 1) for row in rows], dim=-1)
        if self.norm_first:
            return self.reduction(self.norm(joined))
        return self.norm(self.reduction(joined))
