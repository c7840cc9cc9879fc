"""What stands on the encoder: pixels for SimMIM, classes for a classifier.

SimMIM: arXiv 2111.09886; classification as Swin's: arXiv 2103.14030.
"""

from collections.abc import Collection
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from simmim.models.masking import cut_squares
from simmim.models.swin import SwinTransformer
from simmim.models.swin.model import initialise

HeadKind = Literal["linear", "mlp", "inverse_swin"]


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
        pixels: Tensor = self.shuffle(self.linear(_pick(features, tokens)).permute(0, 3, 1, 2))
        return pixels


class MlpReconstructionHead(nn.Module):
    """Two layers a token with a GELU between them, else as `ReconstructionHead`.

    `stride` is the side of a token's pixels, `out_channels` the image's.
    """

    def __init__(self, channels: int, stride: int, out_channels: int) -> None:
        super().__init__()
        # Under other names than the linear head's, which files of other programs are written with.
        self.layers = nn.Sequential(
            nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, stride**2 * out_channels)
        )
        self.shuffle = nn.PixelShuffle(stride)

    def forward(
        self, features: Float[Tensor, "b h w c"], tokens: Int[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "_images out_c _H _W"]:
        """As `ReconstructionHead`."""
        pixels: Tensor = self.shuffle(self.layers(_pick(features, tokens)).permute(0, 3, 1, 2))
        return pixels


class PatchSplitting(nn.Module):
    """Makes 2×2 tokens of half the channels of each one: patch merging the other way round."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expansion = nn.Linear(channels, 2 * channels, bias=False)
        self.shuffle = nn.PixelShuffle(2)
        self.norm = nn.LayerNorm(channels // 2)

    def forward(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h2 w2 c2"]:
        """Doubles height and width, halves the channels."""
        split: Tensor = self.shuffle(self.expansion(features).permute(0, 3, 1, 2))
        return self.norm(split.permute(0, 2, 3, 1))


class InverseSwinHead(nn.Module):
    """The encoder's stages from the last to the first, tokens split between them; then a linear layer.

    The heaviest of the heads that SimMIM compares; as many blocks as the encoder, without drop path.
    `model.checkpoint_blocks`, `compile` and FSDP's sharding by block act on the encoder alone.
    A token's pixels depend on its neighbours: the whole image is predicted, whatever is asked for.
    """

    def __init__(self, encoder: SwinTransformer) -> None:
        super().__init__()
        self.stride = encoder.stride
        levels: list[nn.Module] = []
        for stage in reversed(range(len(encoder.depths))):
            levels += encoder.create_blocks(stage, [0.0] * encoder.depths[stage])
            if stage > 0:
                levels.append(PatchSplitting(encoder.channels[stage]))
        self.levels = nn.Sequential(*levels)
        initialise(self.levels)
        self.norm = nn.LayerNorm(encoder.embed_dim)
        self.pixels = nn.Linear(encoder.embed_dim, encoder.patch_size**2 * encoder.in_channels)
        self.shuffle = nn.PixelShuffle(encoder.patch_size)

    def forward(
        self, features: Float[Tensor, "b h w c"], tokens: Int[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "_images out_c _H _W"]:
        """As `ReconstructionHead`."""
        split = self.pixels(self.norm(self.levels(features)))
        image: Tensor = self.shuffle(split.permute(0, 3, 1, 2))
        return image if tokens is None else cut_squares(image, tokens, self.stride)


def create_reconstruction_head(
    kind: HeadKind, encoder: SwinTransformer
) -> ReconstructionHead | MlpReconstructionHead | InverseSwinHead:
    """The head of this kind that fits the encoder."""
    if kind == "inverse_swin":
        return InverseSwinHead(encoder)
    per_token: type[ReconstructionHead] | type[MlpReconstructionHead]
    per_token = ReconstructionHead if kind == "linear" else MlpReconstructionHead
    return per_token(encoder.channels[-1], encoder.stride, encoder.in_channels)


def reconstruction_head_kind(names: Collection[str]) -> HeadKind | None:
    """The kind of head that has weights of these names; None: no reconstruction head has."""
    tells: dict[HeadKind, set[str]] = {
        "linear": {"linear.weight", "linear.bias"},
        "mlp": {"layers.0.weight", "layers.2.weight"},
        "inverse_swin": {"levels.0.norm1.weight", "pixels.weight"},
    }
    return next((kind for kind, telling in tells.items() if telling <= set(names)), None)


def _pick(
    features: Float[Tensor, "b h w c"], tokens: Int[Tensor, "b n"] | None
) -> Float[Tensor, "_images _h _w c"]:
    """All features, or those of these tokens of each image, each as a map of one."""
    if tokens is None:
        return features
    rows = torch.arange(len(features), device=features.device).unsqueeze(1)
    return features.flatten(1, 2)[rows, tokens].view(-1, 1, 1, features.shape[-1])


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
