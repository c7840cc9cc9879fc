"""Position bias and logit scale of an encoder by block, at its own or other window sizes.

The maps of Swin Transformer V2 (arXiv 2111.09883), figure 4. Computed from weights, without images.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simmim.models.swin import SwinTransformer
from simmim.models.swin.attention import MAX_LOGIT_SCALE
from simmim.models.swin.position_bias import normalised_offsets, resize_table
from simmim.utils.errors import UserError
from simmim.utils.sizes import Pair

_OF_A_BLOCK = re.compile(
    r"stages\.(\d+)\.blocks\.(\d+)\.attention\.(logit_scale|position_bias\..+)"
)


class BlockAttention(NamedTuple):
    """One block: `bias` for every offset between two tokens of a window, by head.

    `scale` is the factor of each head's cosines; None for dot products.
    """

    stage: int
    block: int
    bias: Float[Tensor, "heads rows columns"]
    scale: Float[Tensor, " heads"] | None

    @property
    def name(self) -> str:
        """A name like `stage1_block1`, counted from 1."""
        return f"stage {self.stage + 1}, block {self.block + 1}"


def is_of_attention(name: str) -> bool:
    """Whether `describe_attention` reads the encoder parameter of this name."""
    return _OF_A_BLOCK.fullmatch(name) is not None


def describe_attention(
    weights: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
    window_sizes: Sequence[Sequence[int]],
    *,
    scale: float = 1.0,
) -> list[BlockAttention]:
    """The blocks in order, from an encoder's weights and its description.

    `arguments` rebuild the encoder; `window_sizes` are `[height, width]` by stage. The bias is for
    windows `scale` times as large: a table is resized bicubically, a network evaluated.
    """
    by_block: dict[tuple[int, int], dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if found := _OF_A_BLOCK.fullmatch(name):
            own = by_block.setdefault((int(found[1]), int(found[2])), {})
            own[found[3]] = tensor.detach().float().cpu()
    blocks = []
    for (stage, block), own in sorted(by_block.items()):
        window = window_sizes[stage][0], window_sizes[stage][1]
        height, width = (max(1, round(scale * side)) for side in window)
        trained = arguments["pretrained_window_sizes"][stage]
        if "position_bias.table" in own:
            by_offset = resize_table(own["position_bias.table"], window, (height, width))
        else:
            by_offset = _continuous_bias(
                own,
                (height, width),
                (trained[0], trained[1]),
                log_spaced=arguments["position_bias"] == "log_cpb",
            )
        bias = by_offset.T.reshape(-1, 2 * height - 1, 2 * width - 1)
        factor = own.get("logit_scale")
        if factor is not None:
            factor = factor.clamp(max=MAX_LOGIT_SCALE).exp()
        blocks.append(BlockAttention(stage, block, bias, factor))
    return blocks


def position_biases(encoder: SwinTransformer, scale: float = 1.0) -> list[BlockAttention]:
    """Each block's bias by head, for every offset within a window `scale` times the encoder's own.

    This is the bias before any training at that window; figure 4 of Swin V2 compares windows of 8
    and 16. Offset zero is in the middle of a map; offsets are query minus key.

    Raises:
        UserError: a scale that is not positive.
    """
    if scale <= 0:
        raise UserError(f"scale {scale} is not positive; use 1 for the encoder's own windows, or 2")
    return describe_attention(
        encoder.state_dict(), encoder.arguments, encoder.window_sizes, scale=scale
    )


def _continuous_bias(
    own: Mapping[str, Tensor], window: Pair, trained: Pair, *, log_spaced: bool
) -> Float[Tensor, "offsets heads"]:
    """`16 · sigmoid(mlp(offset))`, as in `ContinuousPositionBias`."""
    offsets = normalised_offsets(window, trained, log_spaced=log_spaced).view(-1, 2)
    weight, bias = own["position_bias.mlp.0.weight"], own["position_bias.mlp.0.bias"]
    hidden = F.relu(F.linear(offsets, weight, bias))
    return 16 * torch.sigmoid(F.linear(hidden, own["position_bias.mlp.2.weight"]))
