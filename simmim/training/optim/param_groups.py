"""Which parameters decay, and how far below the peak each layer's learning rate stays."""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn


def decays(name: str, parameter: nn.Parameter) -> bool:
    """The papers' rule: vectors (norms, biases, scales, tokens) and position biases do not decay."""
    return parameter.ndim > 1 and "position_bias" not in name


def layer_index(name: str, depths: Sequence[int]) -> int:
    """A parameter's layer: 0 for what makes tokens, then block by block, and last the rest.

    Patch merging counts with the block before it, as in the official fine-tuning code.
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

    The last layer learns at `lr`, each layer before it at `layer_decay` times the next one's. Groups
    are the same for every `lr` and `weight_decay`: a checkpoint's states are by group.
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
