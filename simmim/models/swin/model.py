"""The Swin Transformer encoder, V1 and V2, as one class with the papers' ablations as options."""

from collections.abc import Sequence
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from simmim.models.swin.activation_checkpointing import (
    CheckpointBlocks,
    checkpointed_blocks,
    windows_at_a_time,
)
from simmim.models.swin.attention import AttentionBackend, PositionBias, Similarity
from simmim.models.swin.blocks import Stage, SwinBlock
from simmim.models.swin.derived_tables import TableModule
from simmim.models.swin.drop_path import draw_paths, drop_path_rates
from simmim.models.swin.patch_embed import Norm, PatchEmbedding, PatchMerging
from simmim.models.swin.tracing import is_symbolic
from simmim.models.swin.windows import WindowGrid, fit_window
from simmim.utils.errors import UserError
from simmim.utils.sizes import Pair, Size, as_pair, show


class SwinTransformer(TableModule):
    """Swin Transformer encoder (V2: arXiv 2111.09883, V1: arXiv 2103.14030).

    Args:
        embed_dim: channels of the first stage; each later stage has twice as many.
        depths: blocks of each stage; any number of stages.
        num_heads: attention heads of each stage.
        image_size: pixels, an int or `(height, width)`, a multiple of `stride`.
        patch_size: side in pixels of the patch that becomes one token of the first stage.
        window_size: tokens, an int or `(height, width)`; clipped to the feature map.
        pretrained_window_sizes: one per stage, the windows that a continuous position bias was
            trained with (None: the windows of this encoder).
        norm: `res_post` (V2) or `pre` (V1, with V1's patch merging).
        similarity: `cosine` (V2) or `dot` (V1).
        position_bias: `log_cpb` (V2), `linear_cpb` or `table` (V1).
        main_branch_norm_every: adds a LayerNorm after every this many blocks of a stage (0: none).
        mlp_ratio: hidden channels of each MLP relative to its input channels.
        drop_path_rate: stochastic depth rate of the last block; grows linearly from 0.
        attention_backend: `auto`; `sdpa`; `chunked` (less memory on a CPU; no second derivatives and no
            torch.func transforms); `triton` (a fused kernel, on CUDA GPUs); `reference` for tests.
        checkpoint_blocks: blocks with activation checkpointing: `none`, `all`, or the number of
            leading blocks of each stage.
        sequential_attention: number of windows to compute attention for at a time, an int or one
            per stage (0: all); saves memory, same result.

    Raises:
        UserError: sizes that do not fit; the message says why and suggests sizes that would.
    """

    kept_paths: Tensor | None

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        image_size: Size,
        window_size: Size,
        patch_size: int = 4,
        in_channels: int = 3,
        pretrained_window_sizes: Sequence[Size] | None = None,
        norm: Norm = "res_post",
        similarity: Similarity = "cosine",
        position_bias: PositionBias = "log_cpb",
        main_branch_norm_every: int = 0,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        attention_backend: AttentionBackend = "auto",
        checkpoint_blocks: CheckpointBlocks = "none",
        sequential_attention: int | Sequence[int] = 0,
    ) -> None:
        super().__init__()
        self.depths = tuple(depths)
        self.num_heads = tuple(num_heads)
        self.image_size = as_pair(image_size, "model.image_size")
        self.window_size = as_pair(window_size, "model.window_size")
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.embed_dim = embed_dim
        self.norm_placement = norm
        self.similarity = similarity
        self.position_bias = position_bias
        self.main_branch_norm_every = main_branch_norm_every
        self.mlp_ratio = mlp_ratio
        self.drop_path_rate = drop_path_rate
        self.attention_backend = attention_backend
        self._check()
        self.checkpointed_blocks = checkpointed_blocks(checkpoint_blocks, self.depths)
        self.windows_at_a_time = windows_at_a_time(sequential_attention, len(self.depths))
        self.pretrained_window_sizes = self._pretrained_windows(pretrained_window_sizes)

        self.patch_embedding = PatchEmbedding(in_channels, embed_dim, patch_size)
        rates = drop_path_rates(drop_path_rate, self.depths)
        self.stages = nn.ModuleList(
            self._create_stage(stage, rates[stage]) for stage in range(len(self.depths))
        )
        self.norm = nn.LayerNorm(self.channels[-1])
        initialise(self)
        self.register_tables()

    def create_tables(self) -> dict[str, Tensor | None]:
        """With drop path, the probability of keeping each of a block's two branches."""
        if self.drop_path_rate == 0:
            return {"kept_paths": None}
        rates = [torch.tensor(own) for own in drop_path_rates(self.drop_path_rate, self.depths)]
        return {"kept_paths": 1 - torch.cat(rates).view(-1, 1, 1).repeat(1, 2, 1)}

    @property
    def stride(self) -> int:
        """Side in pixels of a token of the last stage."""
        return self.strides[-1]

    @property
    def strides(self) -> tuple[int, ...]:
        """Side in pixels of a token, by stage."""
        return tuple(self.patch_size * 2**stage for stage in range(len(self.depths)))

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels by stage."""
        return tuple(self.embed_dim * 2**stage for stage in range(len(self.depths)))

    @property
    def feature_sizes(self) -> tuple[Pair, ...]:
        """`(height, width)` of the feature map by stage, at `image_size`."""
        height, width = self.image_size
        return tuple((height // stride, width // stride) for stride in self.strides)

    @property
    def window_sizes(self) -> tuple[Pair, ...]:
        """`(height, width)` of the window by stage, clipped to the feature map."""
        return tuple(
            fit_window(feature_size, self.window_size, shifted=False).window_size
            for feature_size in self.feature_sizes
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that rebuild this encoder, in JSON types."""
        return {
            "embed_dim": self.embed_dim,
            "depths": list(self.depths),
            "num_heads": list(self.num_heads),
            "image_size": list(self.image_size),
            "window_size": list(self.window_size),
            "patch_size": self.patch_size,
            "in_channels": self.in_channels,
            "pretrained_window_sizes": [list(pair) for pair in self.pretrained_window_sizes],
            "norm": self.norm_placement,
            "similarity": self.similarity,
            "position_bias": self.position_bias,
            "main_branch_norm_every": self.main_branch_norm_every,
            "mlp_ratio": self.mlp_ratio,
            "drop_path_rate": self.drop_path_rate,
        }

    def forward(self, images: Float[Tensor, "b c H W"]) -> Float[Tensor, "b last_c h w"]:
        """The last feature map, normalised: `H / stride` by `W / stride` tokens."""
        return self.encode(self.embed(images)).permute(0, 3, 1, 2)

    def feature_pyramid(
        self, images: Float[Tensor, "b c H W"]
    ) -> list[Float[Tensor, "b _c _h _w"]]:
        """The feature maps of all stages, finest first; the last equals the output of `forward`."""
        features = self.embed(images)
        pyramid = []
        for stage, drawn in zip(self.stages, self._draw_paths(features), strict=True):
            features = stage(features, drawn)
            pyramid.append(features)
        pyramid[-1] = self.norm(features)
        return [level.permute(0, 3, 1, 2) for level in pyramid]

    def embed(self, images: Float[Tensor, "b in_c H W"]) -> Float[Tensor, "b h w c"]:
        """Embeds each image patch as a token."""
        if not is_symbolic():
            self._check_images(images)
        return self.patch_embedding(images)

    def _check_images(self, images: Float[Tensor, "b in_c H W"]) -> None:
        height, width = images.shape[-2:]
        if images.shape[1] != self.in_channels:
            raise UserError(
                f"images have {images.shape[1]} channels but the encoder takes {self.in_channels}; "
                f"set model.in_channels={images.shape[1]}"
            )
        if height % self.stride or width % self.stride:
            raise UserError(self._stride_message((height, width)))

    def encode(self, tokens: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h2 w2 c2"]:
        """Runs embedded tokens (some of them mask tokens, in SimMIM) through all stages."""
        for stage, drawn in zip(self.stages, self._draw_paths(tokens), strict=True):
            tokens = stage(tokens, drawn)
        return self.norm(tokens)

    def _draw_paths(
        self, tokens: Float[Tensor, "b h w c"]
    ) -> Sequence[Float[Tensor, "_blocks 2 b"] | None]:
        """Drop path's factors for each image, by stage; None where nothing is dropped."""
        if self.kept_paths is None or not self.training:
            return [None] * len(self.depths)
        return torch.split(draw_paths(self.kept_paths, tokens.shape[0]), list(self.depths))

    def create_blocks(self, stage: int, drop_path_rates: Sequence[float]) -> list[SwinBlock]:
        """Creates new blocks as in this stage, one per drop path rate, with their own weights."""
        every = self.main_branch_norm_every
        return [
            SwinBlock(
                self.channels[stage],
                self.num_heads[stage],
                self._grid(stage, shifted=number % 2 == 1),
                self.pretrained_window_sizes[stage],
                norm=self.norm_placement,
                similarity=self.similarity,
                position_bias=self.position_bias,
                mlp_ratio=self.mlp_ratio,
                drop_path_rate=rate,
                main_branch_norm=every > 0 and (number + 1) % every == 0,
                attention_backend=self.attention_backend,
                windows_at_a_time=self.windows_at_a_time[stage],
            )
            for number, rate in enumerate(drop_path_rates)
        ]

    def _create_stage(self, stage: int, rates: list[float]) -> Stage:
        channels = self.channels[stage]
        merging = PatchMerging(channels // 2, self.norm_placement) if stage > 0 else None
        return Stage(merging, self.create_blocks(stage, rates), self.checkpointed_blocks[stage])

    def _grid(self, stage: int, *, shifted: bool) -> WindowGrid:
        return fit_window(self.feature_sizes[stage], self.window_size, shifted=shifted)

    def _pretrained_windows(self, sizes: Sequence[Size] | None) -> tuple[Pair, ...]:
        if sizes is None:
            return self.window_sizes
        if len(sizes) != len(self.depths):
            raise UserError(
                f"pretrained_window_sizes {list(sizes)} has {len(sizes)} entries for "
                f"{len(self.depths)} stages; give one a stage, e.g. {list(self.window_sizes)}"
            )
        return tuple(as_pair(size, "pretrained_window_sizes") for size in sizes)

    def _check(self) -> None:
        for name, value, choices in (
            ("norm", self.norm_placement, get_args(Norm)),
            ("similarity", self.similarity, get_args(Similarity)),
            ("position_bias", self.position_bias, get_args(PositionBias)),
            ("attention_backend", self.attention_backend, get_args(AttentionBackend)),
        ):
            if value not in choices:
                raise UserError(f"model.{name}={value} is unknown; use {' or '.join(choices)}")
        if not self.depths or min(self.depths) < 1 or len(self.num_heads) != len(self.depths):
            raise UserError(
                f"depths {list(self.depths)} and num_heads {list(self.num_heads)} must list "
                "one positive number for each stage"
            )
        for name, number in (
            ("embed_dim", self.embed_dim),
            ("patch_size", self.patch_size),
            ("in_channels", self.in_channels),
        ):
            if number < 1:
                raise UserError(f"model.{name}={number} is not positive; use 1 or more")
        for stage, (channels, heads) in enumerate(zip(self.channels, self.num_heads, strict=True)):
            if heads < 1 or channels % heads:
                fits = next(n for n in range(max(channels // 32, 1), 0, -1) if channels % n == 0)
                raise UserError(
                    f"{heads} heads do not divide the {channels} channels of stage {stage + 1}; "
                    f"use num_heads of {fits} ({channels // fits} channels a head)"
                )
        if not 0 <= self.drop_path_rate < 1:
            raise UserError(f"drop_path_rate {self.drop_path_rate} is not in [0, 1); use 0.1")
        if any(side % self.stride for side in self.image_size):
            raise UserError(self._stride_message(self.image_size))
        if min(self.window_size) < 2:
            raise UserError(
                f"window size {show(self.window_size)} leaves a token alone with itself and no "
                "relative offsets; use a window of 2 or more, e.g. 8"
            )

    def _stride_message(self, image_size: Pair) -> str:
        misfit = next(side for side in image_size if side % self.stride)
        below = misfit // self.stride * self.stride
        fits = " or ".join(str(side) for side in (below, below + self.stride) if side > 0)
        return (
            f"image size {show(image_size)} is not a multiple of {self.stride} "
            f"(patch {self.patch_size} × {len(self.depths) - 1} downsamplings); use {fits}"
        )


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Official initialisation: linear weights trunc_normal(std=0.02), biases and res-post gains 0.

    A block with `res_post` norms therefore starts as the identity.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, SwinBlock) and not part.pre_norm:
            nn.init.zeros_(part.norm1.weight)
            nn.init.zeros_(part.norm2.weight)
