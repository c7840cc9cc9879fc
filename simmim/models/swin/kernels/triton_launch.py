"""Window attention's kernels at work: tiles, grids, and what the kernels fill.

Imported only where the kernels run, for Triton need not be installed.
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
    """Of the pairs of a window, how many a program takes at a time, and with what.

    Attributes:
        rows: query tokens, a power of two of at least 16.
        columns: key tokens, likewise.
        warps: of 32 threads each.
        stages: how many loads the compiler keeps under way.
    """

    rows: int
    columns: int
    warps: int
    stages: int


# Tiles by (bytes of a number, channels that a head is padded to): the largest that keep all that a
# program holds in registers and in 99 KiB of shared memory, by the compiler's word for an sm_86.
_LARGEST_TILES = {
    (2, 32): Tile(64, 64, warps=4, stages=2),
    (2, 64): Tile(64, 32, warps=4, stages=2),
    (2, 128): Tile(64, 32, warps=8, stages=1),
    (4, 32): Tile(32, 32, warps=4, stages=2),
    (4, 64): Tile(32, 16, warps=4, stages=2),
    (4, 128): Tile(16, 16, warps=4, stages=1),
}

# Tiles by (tokens, channels of a head, bytes of a number) that come before the rule. Here go those that
# `scripts/attention_race.py --tiles` finds faster: no GPU has run it yet.
RACED_TILES: dict[tuple[int, int, int], Tile] = {}

# Programs among which the windows are shared out to sum the bias's gradient, at most about so many.
_BIAS_PROGRAMS = 1024


def choose_tile(tokens: int, head_dim: int, bytes_of_number: int) -> Tile:
    """The tile for a shape: a function of it alone, so that a run's sums do not depend on timings."""
    raced = RACED_TILES.get((tokens, head_dim, bytes_of_number))
    if raced is not None:
        return raced
    largest = _LARGEST_TILES[bytes_of_number, max(32, padded_width(head_dim))]
    window = max(16, triton.next_power_of_2(tokens))
    rows, columns = min(largest.rows, window), min(largest.columns, window)
    # Half as wide where that leaves less of the last tile empty.
    columns = min((columns, max(16, columns // 2)), key=lambda side: -(-tokens // side) * side)
    return largest._replace(rows=rows, columns=columns)


def padded_width(head_dim: int) -> int:
    """Channels of a head as a program holds them: a power of two of at least 16."""
    return max(16, triton.next_power_of_2(head_dim))


def attend_forward(
    qkv: Tensor, bias: Tensor, factor: Tensor | None, regions: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attends within windows.

    Args:
        qkv: contiguous `(windows, tokens, 3, heads, head_dim)`.
        bias: contiguous float32 `(heads, tokens, tokens)`.
        factor: float32 `(heads,)`, what cosines are multiplied by; None: dot products over √head_dim.
        regions: contiguous int64 `(windows of an image, tokens)`; only equal ones see each other.

    Returns:
        `(windows, tokens, heads, head_dim)` of qkv's type, and float32 `(windows, heads, tokens)`,
        each query's log2 of the sum of 2 to its logits, which are in units of log2.
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

    Every sum is made in one order, the same each time: no atomics.

    Args:
        gradient: of `attended`, contiguous.
        qkv: as `attend_forward` took it.
        bias: likewise.
        factor: likewise.
        regions: likewise.
        attended: what that returned.
        log_sums: likewise.
        needs_bias: whether the bias's gradient is asked for.
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
    """Triton starts kernels on the current GPU, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def launch_options(
    qkv: Tensor, factor: Tensor | None, regions: Tensor | None
) -> tuple[Tile, dict[str, Any]]:
    """The tile, and what a kernel is compiled with."""
    tokens, head_dim = qkv.shape[1], qkv.shape[4]
    tile = choose_tile(tokens, head_dim, qkv.element_size())
    # As PyTorch's own products of float32 matrices.
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
