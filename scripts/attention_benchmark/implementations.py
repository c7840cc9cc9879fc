"""Random inputs, and all implementations of shifted-window attention that are compared."""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from simmim.models.swin.attention import attend_reference, attend_sdpa
from simmim.models.swin.kernels.triton_attention import fused_attention, regions_of
from simmim.models.swin.windows import attention_mask, fit_window

SDPA_BACKENDS = {
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


class AttentionInputs(NamedTuple):
    """The inputs of attention in windows.

    Attributes:
        qkv: queries, keys and values as the projection returns them: concatenated along channels,
            each split by head.
        bias: the position bias in float32.
        factor: the scale of each head's cosines, in float32.
        mask: True where two tokens must not attend to each other; None without a shift.
    """

    qkv: Float[Tensor, "b windows tokens c3"]
    bias: Float[Tensor, "heads tokens tokens"]
    factor: Float[Tensor, " heads"]
    mask: Bool[Tensor, "mask_windows tokens tokens"] | None

    @property
    def differentiable(self) -> list[Tensor]:
        """The tensors whose gradients are computed."""
        return [self.qkv, self.bias, self.factor]


Attend: TypeAlias = Callable[[AttentionInputs], Float[Tensor, "b windows tokens c"]]
# One score of FlexAttention, and where it is.
Score: TypeAlias = Float[Tensor, ""]
Index: TypeAlias = Int[Tensor, ""]


class Implementation(NamedTuple):
    """A function that computes attention, and the context for its forward and backward passes."""

    attend: Attend
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


def draw_inputs(
    dtype: torch.dtype,
    window: int,
    heads: int,
    *,
    head_dim: int,
    total_tokens: int,
    is_shifted: bool,
    device: torch.device,
) -> AttentionInputs:
    """Random inputs: images of 4 × 4 windows, with about `total_tokens` tokens in all."""
    generator = torch.Generator().manual_seed(0)
    tokens = window * window
    grid = fit_window((4 * window, 4 * window), (window, window), shifted=is_shifted)
    images = max(1, round(total_tokens / (16 * tokens)))
    channels = 3 * heads * head_dim
    # One image is drawn on the CPU, the same for all devices; the others are scaled copies of it.
    qkv = torch.randn(1, 16, tokens, channels, generator=generator).to(device)
    scales = torch.linspace(0.5, 2, images, device=device).view(-1, 1, 1, 1)
    mask = attention_mask(grid)
    return AttentionInputs(
        (qkv * scales).to(dtype).requires_grad_(),
        (2 * torch.randn(heads, tokens, tokens, generator=generator)).to(device).requires_grad_(),
        torch.linspace(5, 20, heads).to(device).requires_grad_(),
        None if mask is None else mask.to(device),
    )


def create_implementations() -> dict[str, Implementation]:
    """All implementations by name; times are compared with the first, the Triton kernel."""
    return {
        "kernel": Implementation(attend_with_triton),
        **{
            f"sdpa {name}": Implementation(
                attend_with_sdpa, functools.partial(sdpa_kernel, backend)
            )
            for name, backend in SDPA_BACKENDS.items()
        },
        "sdpa compiled": Implementation(compile_statically(attend_with_sdpa)),
        "flex compiled": Implementation(compile_statically(attend_with_flex)),
        "reference compiled": Implementation(compile_statically(attend_with_reference)),
    }


def create_tile_implementations(
    tokens: int, head_dim: int, dtype: torch.dtype
) -> dict[str, Implementation]:
    """The Triton kernel with the tile that it uses by default, then with others."""
    from simmim.models.swin.kernels.triton_launch import TUNED_TILES, Tile, choose_tile

    key = tokens, head_dim, dtype.itemsize

    @contextmanager
    def use(tile: Tile) -> Iterator[None]:
        before = TUNED_TILES.get(key)
        TUNED_TILES[key] = tile
        try:
            yield
        finally:
            TUNED_TILES.pop(key)
            if before is not None:
                TUNED_TILES[key] = before

    sides = [side for side in (16, 32, 64, 128) if side < 2 * tokens]
    tiles = [choose_tile(*key)] + [
        Tile(rows, columns, warps, stages)
        for rows in sides
        for columns in sides
        for warps in (2, 4, 8)
        for stages in (1, 2, 3)
        # With fewer pairs warps have no work, with more the registers spill.
        if 128 <= rows * columns / warps <= 2048
    ]
    return {
        f"{tile.rows},{tile.columns},{tile.warps},{tile.stages}": Implementation(
            attend_with_triton, functools.partial(use, tile)
        )
        for tile in tiles
    }


def compile_statically(attend: Attend) -> Attend:
    """`attend`, compiled as one graph for static shapes."""
    compiled: Attend = torch.compile(attend, dynamic=False, fullgraph=True)
    return compiled


def attend_with_triton(inputs: AttentionInputs) -> Float[Tensor, "b windows tokens c"]:
    """Attention with the package's fused Triton kernel."""
    return fused_attention(inputs.qkv, inputs.bias, inputs.mask, inputs.factor)


def attend_with_sdpa(inputs: AttentionInputs) -> Float[Tensor, "b windows tokens c"]:
    """Attention with `scaled_dot_product_attention`; the mask is part of the bias."""
    query, key, value = split_heads(inputs)
    attended = attend_sdpa(
        query, key, value, masked_bias(inputs), is_masked=inputs.mask is not None
    )
    return join_heads(attended)


def attend_with_reference(inputs: AttentionInputs) -> Float[Tensor, "b windows tokens c"]:
    """Attention written out in float32, as in the paper."""
    query, key, value = split_heads(inputs)
    return join_heads(attend_reference(query, key, value, masked_bias(inputs)))


def attend_with_flex(inputs: AttentionInputs) -> Float[Tensor, "b windows tokens c"]:
    """Attention with `flex_attention`; bias and mask modify its scores."""
    from torch.nn.attention.flex_attention import flex_attention

    query, key, value = split_heads(inputs)
    bias = inputs.bias
    if inputs.mask is None:

        def modify(score: Score, window: Index, head: Index, row: Index, column: Index) -> Score:
            return score + bias[head, row, column]

    else:
        regions = regions_of(inputs.mask)
        count = regions.shape[0]

        def modify(score: Score, window: Index, head: Index, row: Index, column: Index) -> Score:
            is_visible = regions[window % count, row] == regions[window % count, column]
            return torch.where(is_visible, score + bias[head, row, column], -torch.inf)

    attended = flex_attention(
        query.flatten(0, 1).contiguous(),
        key.flatten(0, 1).contiguous(),
        value.flatten(0, 1).contiguous(),
        score_mod=modify,
        scale=1.0,
    )
    assert isinstance(attended, Tensor)
    return join_heads(attended.view(query.shape))


def split_heads(
    inputs: AttentionInputs,
) -> tuple[
    Float[Tensor, "b windows heads tokens d"],
    Float[Tensor, "b windows heads tokens d"],
    Float[Tensor, "b windows heads tokens d"],
]:
    """Queries, keys and values by head; the dot product of the first two is the scaled cosine."""
    images, windows, tokens, _ = inputs.qkv.shape
    heads = inputs.bias.shape[0]
    apart = inputs.qkv.view(images, windows, tokens, 3, heads, -1).permute(3, 0, 1, 4, 2, 5)
    query, key, value = apart.unbind(0)
    query_directions = F.normalize(query.float(), dim=-1) * inputs.factor.view(-1, 1, 1)
    return query_directions.to(query.dtype), F.normalize(key.float(), dim=-1).to(key.dtype), value


def join_heads(
    attended: Float[Tensor, "b windows heads tokens d"],
) -> Float[Tensor, "b windows tokens c"]:
    """The heads' outputs, concatenated along channels."""
    return attended.transpose(2, 3).flatten(3)


def masked_bias(
    inputs: AttentionInputs,
) -> Float[Tensor, "mask_windows heads tokens tokens"]:
    """The bias, per window of the mask: minus infinity where tokens must not attend to each other."""
    bias = inputs.bias.unsqueeze(0)
    return bias if inputs.mask is None else bias.masked_fill(inputs.mask.unsqueeze(1), -torch.inf)
