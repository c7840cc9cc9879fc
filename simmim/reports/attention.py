"""Position bias and logit scale of an encoder, block by block, from its weights alone."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from simmim.checkpoints.reading import read_weights
from simmim.encoder.attention import MAX_LOGIT_SCALE
from simmim.encoder.position_bias import normalised_offsets
from simmim.sizes import Pair

_OF_A_BLOCK = re.compile(
    r"stages\.(\d+)\.blocks\.(\d+)\.attention\.(logit_scale|position_bias\..+)"
)


class BlockAttention(NamedTuple):
    """One block: `bias` for every offset between two tokens of a window, by head.

    `scale` is what a cosine is multiplied by, of each head; None for dot products.
    """

    stage: int
    block: int
    bias: Float[Tensor, "heads rows columns"]
    scale: Float[Tensor, " heads"] | None

    @property
    def name(self) -> str:
        """Counted from 1, as people do."""
        return f"stage {self.stage + 1}, block {self.block + 1}"


def is_of_attention(name: str) -> bool:
    """Whether an encoder's tensor of this name is one that `describe_attention` reads."""
    return _OF_A_BLOCK.fullmatch(name) is not None


def describe_attention(
    weights: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
    window_sizes: list[list[int]],
) -> list[BlockAttention]:
    """The blocks in order, from an encoder's weights and its description.

    `arguments` rebuild the encoder; `window_sizes` are `[height, width]` by stage.
    """
    by_block: dict[tuple[int, int], dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if found := _OF_A_BLOCK.fullmatch(name):
            own = by_block.setdefault((int(found[1]), int(found[2])), {})
            own[found[3]] = tensor.detach().float().cpu()
    blocks = []
    for (stage, block), own in sorted(by_block.items()):
        height, width = window_sizes[stage]
        trained = arguments["pretrained_window_sizes"][stage]
        if "position_bias.table" in own:
            by_offset = own["position_bias.table"]
        else:
            by_offset = _continuous_bias(
                own,
                (height, width),
                (trained[0], trained[1]),
                log_spaced=arguments["position_bias"] == "log_cpb",
            )
        bias = by_offset.T.reshape(-1, 2 * height - 1, 2 * width - 1)
        scale = own.get("logit_scale")
        if scale is not None:
            scale = scale.clamp(max=MAX_LOGIT_SCALE).exp()
        blocks.append(BlockAttention(stage, block, bias, scale))
    return blocks


def _continuous_bias(
    own: Mapping[str, Tensor], window: Pair, trained: Pair, *, log_spaced: bool
) -> Float[Tensor, "offsets heads"]:
    """`16 · sigmoid(mlp(offset))`, as the block's own module computes it."""
    offsets = normalised_offsets(window, trained, log_spaced=log_spaced).view(-1, 2)
    weight, bias = own["position_bias.mlp.0.weight"], own["position_bias.mlp.0.bias"]
    hidden = F.relu(F.linear(offsets, weight, bias))
    return 16 * torch.sigmoid(F.linear(hidden, own["position_bias.mlp.2.weight"]))


def read_attention(run_dir: Path) -> list[BlockAttention]:
    """From the encoder that a run left, or a checkpoint of it; no block where there is none."""
    finished = run_dir / "encoder.safetensors"
    checkpoints = [run_dir / "checkpoints" / name for name in ("last.ckpt", "best.ckpt")]
    last = next((path for path in checkpoints if path.exists()), None)
    if finished.is_file():
        with safe_open(finished, framework="pt") as file:
            description = json.loads((file.metadata() or {}).get("simmim", "null"))
            weights = {
                name: file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118
                if is_of_attention(name)
            }
    elif last is not None:
        content = read_weights(last)
        description, weights = content.description, content.encoder
    else:
        return []
    if description is None:
        return []
    return describe_attention(weights, description["arguments"], description["window_sizes"])
