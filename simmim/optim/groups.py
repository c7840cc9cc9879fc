"""Which parameters decay."""

from typing import Any

from torch import nn


def decays(name: str, parameter: nn.Parameter) -> bool:
    """The papers' rule: vectors (norms, biases, scales, tokens) and position biases do not decay."""
    return parameter.ndim > 1 and "position_bias" not in name


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters in two optimiser groups: with weight decay, and without."""
    groups: dict[float, list[nn.Parameter]] = {weight_decay: [], 0.0: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[weight_decay if decays(name, parameter) else 0.0].append(parameter)
    return [{"params": params, "weight_decay": decay} for decay, params in groups.items() if params]
