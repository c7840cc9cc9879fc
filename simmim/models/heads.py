"""Heads on top of the encoder: pixel reconstruction for SimMIM, and classification.

SimMIM: arXiv 2111.09886; classification as in Swin: arXiv 2103.14030.
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
    """A linear layer per token with a pixel shuffle (SimMIM, section 3.4).

    Each token predicts `stride × stride` pixels of `out_channels` channels.
    """

    def __init__(self, channels: int, stride: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, stride**2 * out_channels)
        self.shuffle = nn.PixelShuffle(stride)

    def forward(
        self, features: Float[Tensor, "b h w c"], tokens: Int[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "_images out_c _H _W"]:
        """The whole predicted image, or only the squares that the given `tokens` predict.

        `tokens` are numbered row by row. Their squares of `stride × stride` pixels are returned as
        `b · n` images.
        """
        pixels: Tensor = self.shuffle(self.linear(_pick(features, tokens)).permute(0, 3, 1, 2))
        return pixels


class MlpReconstructionHead(nn.Module):
    """Like `ReconstructionHead`, with two linear layers per token and a GELU between them.

    Each token predicts `stride × stride` pixels of `out_channels` channels.
    """

    def __init__(self, channels: int, stride: int, out_channels: int) -> None:
        super().__init__()
        # Not named like the linear head's layer: other programs' checkpoints map to that name.
        self.layers = nn.Sequential(
            nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, stride**2 * out_channels)
        )
        self.shuffle = nn.PixelShuffle(stride)

    def forward(
        self, features: Float[Tensor, "b h w c"], tokens: Int[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "_images out_c _H _W"]:
        """Predicts images or squares, as `ReconstructionHead` does."""
        pixels: Tensor = self.shuffle(self.layers(_pick(features, tokens)).permute(0, 3, 1, 2))
        return pixels


class PatchSplitting(nn.Module):
    """Splits each token into 2×2 tokens with half the channels: the inverse of patch merging."""

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
    """The encoder's stages in reverse order with patch splitting between them, then a linear layer.

    The heaviest head that SimMIM compares: as many blocks as the encoder, without drop path.
    `model.checkpoint_blocks`, `compile` and FSDP's per-block sharding apply only to the encoder.
    A token's pixels depend on its neighbours, so the whole image is always computed.
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
        """Predicts images or squares, as `ReconstructionHead` does."""
        split = self.pixels(self.norm(self.levels(features)))
        image: Tensor = self.shuffle(split.permute(0, 3, 1, 2))
        return image if tokens is None else cut_squares(image, tokens, self.stride)


def create_reconstruction_head(
    kind: HeadKind, encoder: SwinTransformer
) -> ReconstructionHead | MlpReconstructionHead | InverseSwinHead:
    """Creates the head of this kind, sized for the encoder."""
    if kind == "inverse_swin":
        return InverseSwinHead(encoder)
    per_token: type[ReconstructionHead] | type[MlpReconstructionHead]
    per_token = ReconstructionHead if kind == "linear" else MlpReconstructionHead
    return per_token(encoder.channels[-1], encoder.stride, encoder.in_channels)


def reconstruction_head_kind(names: Collection[str]) -> HeadKind | None:
    """The kind of reconstruction head with weights of these names; None if there is none."""
    tells: dict[HeadKind, set[str]] = {
        "linear": {"linear.weight", "linear.bias"},
        "mlp": {"layers.0.weight", "layers.2.weight"},
        "inverse_swin": {"levels.0.norm1.weight", "pixels.weight"},
    }
    return next((kind for kind, telling in tells.items() if telling <= set(names)), None)


def _pick(
    features: Float[Tensor, "b h w c"], tokens: Int[Tensor, "b n"] | None
) -> Float[Tensor, "_images _h _w c"]:
    """All features, or those of the given tokens of each image, each as a 1×1 feature map."""
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
        """The class logits."""
        logits: Tensor = self.linear(features.mean(dim=(1, 2)))
        return logits
