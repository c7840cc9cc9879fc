"""Parameter groups: which parameters have weight decay, and the learning rate of each layer."""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter has weight decay.

    As in the papers, vectors (norms, biases, scales, tokens) and position biases have none.
    """
    return parameter.ndim > 1 and "position_bias" not in name


def layer_index(name: str, depths: Sequence[int]) -> int:
    """A parameter's layer: 0 for patch embedding and mask token, one per block, then the rest.

    Patch merging belongs to the layer of the block before it, as in the official fine-tuning code.
    """
    if "patch_embedding." in name or name.endswith("mask_token"):
        return 0
    if block := re.search(r"stages\.(\d+)\.blocks\.(\d+)\.", name):
        return sum(depths[: int(block[1])]) + int(block[2]) + 1
    if merging := re.search(r"stages\.(\d+)\.merging\.", name):
        return sum(depths[: int(merging[1])])
    return sum(depths) + 1


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    depths: Sequence[int],
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """The trainable parameters, grouped by weight decay and learning rate.

    The last layer's rate is `lr`, that of each layer before it `layer_decay` times the next one's;
    `depths` are the encoder's blocks per stage. The groups do not depend on `lr` and
    `weight_decay`, because checkpoints store optimiser states by group.
    """
    last = sum(depths) + 1
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = layer_decay ** (last - layer_index(name, depths))
            groups.setdefault((scale, decays(name, parameter)), []).append(parameter)
    return [
        {"params": params, "lr": lr * scale, "weight_decay": weight_decay if decaying else 0.0}
        for (scale, decaying), params in groups.items()
    ]
