"""Launches the window attention kernels: tile sizes, grids and output buffers.

Imported only where the kernels run, as Triton is optional.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from simmim.models.swin.kernels.triton_kernels import (
    backward_bias,
    backward_keys,
    backward_queries,
    forward,
)


class Tile(NamedTuple):
    """The tile of a window's pairs that a program processes at a time, and Triton's launch options.

    Attributes:
        rows: number of query tokens, a power of two of at least 16.
        columns: number of key tokens, a power of two of at least 16.
        warps: number of warps of 32 threads.
        stages: pipeline stages, i.e. the number of loads in flight.
    """

    rows: int
    columns: int
    warps: int
    stages: int


# Tiles by (bytes per element, padded channels of a head): the largest that fit in registers and in
# 99 KiB of shared memory, as reported by the compiler for sm_86.
_LARGEST_TILES = {
    (2, 32): Tile(64, 64, warps=4, stages=2),
    (2, 64): Tile(64, 32, warps=4, stages=2),
    (2, 128): Tile(64, 32, warps=8, stages=1),
    (4, 32): Tile(32, 32, warps=4, stages=2),
    (4, 64): Tile(32, 16, warps=4, stages=2),
    (4, 128): Tile(16, 16, warps=4, stages=1),
}

# Tiles by (tokens, channels of a head, bytes per element) that override the rule. Meant for those
# that `scripts/attention_benchmark --tiles` measures as faster; it has not been run on a GPU yet.
TUNED_TILES: dict[tuple[int, int, int], Tile] = {}

# The approximate maximum number of programs among which the sum of the bias's gradient is split.
_BIAS_PROGRAMS = 1024


def choose_tile(tokens: int, head_dim: int, bytes_of_number: int) -> Tile:
    """The tile for a shape; it depends only on the shape, so that results do not depend on timings."""
    tuned = TUNED_TILES.get((tokens, head_dim, bytes_of_number))
    if tuned is not None:
        return tuned
    largest = _LARGEST_TILES[bytes_of_number, max(32, padded_width(head_dim))]
    window = max(16, triton.next_power_of_2(tokens))
    rows, columns = min(largest.rows, window), min(largest.columns, window)
    # Half as wide if that leaves less of the last tile empty.
    columns = min((columns, max(16, columns // 2)), key=lambda side: -(-tokens // side) * side)
    return largest._replace(rows=rows, columns=columns)


def padded_width(head_dim: int) -> int:
    """The channels of a head, padded to a power of two of at least 16."""
    return max(16, triton.next_power_of_2(head_dim))


def attend_forward(
    qkv: Tensor, bias: Tensor, factor: Tensor | None, regions: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Computes attention within windows.

    Args:
        qkv: contiguous `(windows, tokens, 3, heads, head_dim)`.
        bias: contiguous float32 `(heads, tokens, tokens)`.
        factor: float32 `(heads,)`, the scale of the cosines; None: dot products over √head_dim.
        regions: contiguous int64 `(windows of an image, tokens)`; tokens attend only to tokens with
            an equal region.

    Returns:
        The output `(windows, tokens, heads, head_dim)` in qkv's dtype, and each query's base-2
        log-sum-exp of the logits, float32 `(windows, heads, tokens)`.
    """
    windows, tokens, _, heads, head_dim = qkv.shape
    attended = qkv.new_empty(windows, tokens, heads, head_dim)
    log_sums = qkv.new_empty(windows, heads, tokens, dtype=torch.float32)
    tile, shape = launch_options(qkv, factor, regions)
    grid = (windows, heads, triton.cdiv(tokens, tile.rows))
    with _device_of(qkv):
        forward[grid](
            qkv, bias, factor, regions, attended, log_sums, _count(regions), heads, **shape
        )
    return attended, log_sums


def attend_backward(
    gradient: Tensor,
    qkv: Tensor,
    bias: Tensor,
    factor: Tensor | None,
    regions: Tensor | None,
    attended: Tensor,
    log_sums: Tensor,
    needs_bias: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of qkv, bias (None unless needed) and factor (None for dot products).

    Deterministic: sums are always in the same order, without atomics.

    Args:
        gradient: the gradient of `attended`, contiguous.
        qkv: as passed to `attend_forward`.
        bias: as passed to `attend_forward`.
        factor: as passed to `attend_forward`.
        regions: as passed to `attend_forward`.
        attended: the output of `attend_forward`.
        log_sums: the log-sum-exps from `attend_forward`.
        needs_bias: whether to compute the bias's gradient.
    """
    windows, tokens, _, heads, _ = qkv.shape
    tile, shape = launch_options(qkv, factor, regions)
    row_tiles, column_tiles = triton.cdiv(tokens, tile.rows), triton.cdiv(tokens, tile.columns)
    given = (qkv, bias, factor, regions, gradient, log_sums)
    counts = (_count(regions), heads)
    overlaps = torch.empty_like(log_sums)
    qkv_gradient = torch.empty_like(qkv)
    factor_parts = None
    if factor is not None:
        factor_parts = torch.empty(
            windows, heads, row_tiles, dtype=torch.float32, device=qkv.device
        )
    bias_gradient = None
    with _device_of(qkv):
        backward_queries[windows, heads, row_tiles](
            *given, attended, overlaps, qkv_gradient, factor_parts, *counts, **shape
        )
        backward_keys[windows, heads, column_tiles](
            *given, overlaps, qkv_gradient, *counts, **shape
        )
        if needs_bias:
            tiles = row_tiles * column_tiles
            shares = min(windows, triton.cdiv(_BIAS_PROGRAMS, tiles * heads))
            bias_parts = torch.empty(
                shares, heads, tokens, tokens, dtype=torch.float32, device=qkv.device
            )
            backward_bias[tiles, heads, shares](
                *given, overlaps, bias_parts, windows, shares, *counts, **shape
            )
            bias_gradient = bias_parts.sum(0)
    factor_gradient = None if factor_parts is None else factor_parts.sum((0, 2))
    return qkv_gradient, bias_gradient, factor_gradient


def _device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes the tensor's GPU the current one, on which Triton launches kernels."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def launch_options(
    qkv: Tensor, factor: Tensor | None, regions: Tensor | None
) -> tuple[Tile, dict[str, Any]]:
    """The tile, and the compile-time arguments of the kernels."""
    tokens, head_dim = qkv.shape[1], qkv.shape[4]
    tile = choose_tile(tokens, head_dim, qkv.element_size())
    # As in PyTorch's own float32 matrix products.
    is_exact = torch.get_float32_matmul_precision() == "highest"
    return tile, {
        "TOKENS": tokens,
        "HEAD_DIM": head_dim,
        "WIDTH": padded_width(head_dim),
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "IS_COSINE": factor is not None,
        "HAS_REGIONS": regions is not None,
        "PRECISION": "ieee" if is_exact else "tf32",
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "enable_fp_fusion": True,  # Triton's default until 3.9
    }


def _count(regions: Tensor | None) -> int:
    return 1 if regions is None else regions.shape[0]
