"""Relative position bias: a per-head term in the attention logit that depends on the offset.

Swin Transformer V2 (arXiv 2111.09883), section 3.3: a small network over log-spaced offsets, which
transfers to other window sizes; its linear-spaced form; and the table of Swin Transformer V1.
"""

import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from simmim.models.swin.derived_tables import TableModule
from simmim.models.swin.kernels.linear import is_compiled_on_cpu
from simmim.utils.sizes import Pair


def relative_offsets(window_size: Pair) -> Float[Tensor, "rows columns 2"]:
    """Every `(vertical, horizontal)` offset between two tokens of a window, in tokens."""
    axes = [torch.arange(-(side - 1), side, dtype=torch.float32) for side in window_size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def relative_offset_index(window_size: Pair) -> Int[Tensor, "tokens tokens"]:
    """For each (query, key) pair of a window, the index of its offset in the flattened offsets."""
    height, width = window_size
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).view(-1, 2)
    offset = places[:, None] - places[None, :]
    return (offset[..., 0] + height - 1) * (2 * width - 1) + offset[..., 1] + width - 1


def normalised_offsets(
    window_size: Pair, pretrained_window_size: Pair, *, log_spaced: bool
) -> Float[Tensor, "rows columns 2"]:
    """Offsets as inputs of the bias network; 1 is the largest offset in `pretrained_window_size`.

    `log_spaced`: `sign(x) · log2(1 + |8x|) / log2(8)` (equation 4, with the official scale).
    """
    # A window side of one token has only the offset 0, so any divisor works.
    reach = torch.tensor([max(side - 1, 1) for side in pretrained_window_size])
    offsets = relative_offsets(window_size) / reach
    if not log_spaced:
        return offsets
    return offsets.sign() * torch.log2(1 + 8 * offsets.abs()) / math.log2(8)


def spread(
    by_offset: Float[Tensor, "offsets heads"], index: Int[Tensor, "tokens tokens"]
) -> Float[Tensor, "heads tokens tokens"]:
    """Expands the bias per offset to every (query, key) pair by `index`, heads first."""
    by_head = by_offset.T.contiguous()
    if is_compiled_on_cpu(index):
        return _spread(by_head, index.flatten()).view(-1, *index.shape)
    if index.is_cpu:
        # Its backward is much faster than that of indexing. On GPUs it would not be deterministic.
        return by_head.index_select(1, index.flatten()).view(-1, *index.shape)
    return by_head[:, index]


# Custom operators: the code that the compiler generates for these two takes up to twice as long.
@torch.library.custom_op("simmim::spread", mutates_args=())
def _spread(by_head: Tensor, index: Tensor) -> Tensor:
    return by_head.index_select(1, index)


@torch.library.custom_op("simmim::gather_back", mutates_args=())
def _gather_back(gradient: Tensor, index: Tensor, offsets: int) -> Tensor:
    return gradient.new_zeros(len(gradient), offsets).index_add_(1, index, gradient)


@_spread.register_fake
def _(by_head: Tensor, index: Tensor) -> Tensor:
    return by_head.new_empty(len(by_head), len(index))


@_gather_back.register_fake
def _(gradient: Tensor, index: Tensor, offsets: int) -> Tensor:
    return gradient.new_empty(len(gradient), offsets)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    by_head, index = inputs
    ctx.save_for_backward(index)
    ctx.offsets = by_head.shape[1]


def _use_kept(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    (index,) = ctx.saved_tensors
    return _gather_back(gradient, index, ctx.offsets), None


_spread.register_autograd(_use_kept, setup_context=_keep)


class ContinuousPositionBias(TableModule):
    """Bias from a two-layer network over offsets: `16 · sigmoid(mlp(offset))`.

    Always computed in float32. `pretrained_window_size` is the window that the network was trained
    with; at another `window_size`, the same network is evaluated at finer or wider offsets.
    `log_spaced` is as in `normalised_offsets`.
    """

    offsets: Tensor
    index: Tensor

    def __init__(
        self, num_heads: int, window_size: Pair, pretrained_window_size: Pair, *, log_spaced: bool
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, num_heads, bias=False)
        )
        self.window_size = window_size
        self.pretrained_window_size = pretrained_window_size
        self.log_spaced = log_spaced
        self.register_tables()

    def create_tables(self) -> dict[str, Tensor | None]:
        """The network's input offsets in float32, and each pair's index among them."""
        offsets = normalised_offsets(
            self.window_size, self.pretrained_window_size, log_spaced=self.log_spaced
        )
        return {"offsets": offsets.view(-1, 2), "index": relative_offset_index(self.window_size)}

    def forward(self) -> Float[Tensor, "heads tokens tokens"]:
        """The bias of every head and (query, key) pair, in float32."""
        device = self.offsets.device.type
        # Without autocast, which the meta device (used to plan runs) does not support.
        with torch.autocast(device, enabled=False) if device != "meta" else nullcontext():
            learned = F.relu(_in_float32(self.mlp[0], self.offsets.float()))
            by_offset = 16 * torch.sigmoid(_in_float32(self.mlp[2], learned))
        return spread(by_offset, self.index)


def _in_float32(layer: nn.Module, values: Float[Tensor, "rows c"]) -> Float[Tensor, "rows out_c"]:
    if isinstance(layer, nn.Linear):
        bias = None if layer.bias is None else layer.bias.float()
        return F.linear(values, layer.weight.float(), bias)
    # A replacement layer, e.g. a quantised one or one with an adapter.
    replaced: Tensor = layer(values)
    return replaced.float()


class TablePositionBias(TableModule):
    """Bias from a table with one learned value for each head and offset (Swin V1)."""

    index: Tensor

    def __init__(self, num_heads: int, window_size: Pair) -> None:
        super().__init__()
        height, width = window_size
        self.table = nn.Parameter(torch.empty((2 * height - 1) * (2 * width - 1), num_heads))
        self.window_size = window_size
        self.register_tables()
        nn.init.trunc_normal_(self.table, std=0.02)

    def create_tables(self) -> dict[str, Tensor | None]:
        """Each pair's row index in the learned table."""
        return {"index": relative_offset_index(self.window_size)}

    def forward(self) -> Float[Tensor, "heads tokens tokens"]:
        """The bias of every head and (query, key) pair, in float32."""
        return spread(self.table.float(), self.index)


def resize_table(
    table: Float[Tensor, "offsets heads"], trained: Pair | None, window: Pair
) -> Float[Tensor, "_offsets heads"]:
    """Resizes a table trained with the window `trained` to another `window`, bicubically (Swin V1)."""
    if trained is None or trained == window:
        return table
    grid_size, new_size = (tuple(2 * side - 1 for side in pair) for pair in (trained, window))
    if table.shape[0] != math.prod(grid_size):
        return table
    grid = table.float().T.reshape(1, -1, *grid_size)
    resized = F.interpolate(grid, new_size, mode="bicubic", align_corners=False)
    return resized.flatten(2)[0].T.to(table.dtype).contiguous()
