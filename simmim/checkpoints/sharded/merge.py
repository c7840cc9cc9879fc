"""Merges sharded checkpoints: folders in which each process of a run wrote its own part.

FSDP's are PyTorch's distributed checkpoints with Lightning's `meta.pt`; DeepSpeed's have their own
format.
"""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from simmim.checkpoints.sharded.deepspeed import is_deepspeed, read_deepspeed, read_optimizer
from simmim.checkpoints.sharded.layout import REST, is_distributed
from simmim.utils.errors import UserError, first_line


def is_sharded(path: Path) -> bool:
    """Whether the path is the folder of a sharded checkpoint, of FSDP or DeepSpeed."""
    return is_distributed(path) or is_deepspeed(path)


def read_rest(path: Path, *, map_location: str = "cpu") -> dict[str, Any]:
    """What a sharded checkpoint holds beside weights and optimiser: loops, callbacks, the encoder."""
    if is_deepspeed(path):
        return read_deepspeed(path, map_location=map_location)
    rest: dict[str, Any] = torch.load(path / REST, map_location=map_location, weights_only=True)
    return rest


def read_whole(path: Path) -> dict[str, Any]:
    """The merged checkpoint, as a single process writes it, with numbered optimiser states.

    Raises:
        UserError: the folder is damaged, or holds more than weights and numbers.
    """
    try:
        return _whole_deepspeed(path) if is_deepspeed(path) else _whole_distributed(path)
    except Exception as error:  # many types for a damaged or foreign file
        raise UserError(
            f"{path} is damaged or no checkpoint ({first_line(error)}); copy or write it again"
        ) from error


def _whole_distributed(path: Path) -> dict[str, Any]:
    # Takes a second to import, and most checkpoints are plain files.
    from simmim.checkpoints.sharded.dcp import read_parts

    whole = read_parts(path)
    optimizers = sorted(name for name in whole if name.startswith("optimizer_"))
    return {
        **read_rest(path),
        "state_dict": whole["state_dict"],
        "optimizer_states": [number_parameters(whole[name]) for name in optimizers],
    }


def _whole_deepspeed(path: Path) -> dict[str, Any]:
    content = read_deepspeed(path)
    # Keys that Lightning and simmim added; the others are DeepSpeed's.
    added = ("epoch", "global_step", "pytorch-lightning_version", "loops", "callbacks")
    ours = ("lr_schedulers", "encoder", "classes")
    return {
        **{name: content[name] for name in (*added, *ours) if name in content},
        "state_dict": content["module"],
        "optimizer_states": [number_parameters(read_optimizer(path, content["param_shapes"]))],
    }


def number_parameters(state: Mapping[str, Any]) -> dict[str, Any]:
    """Converts an optimiser's state from names to PyTorch's parameter numbers, in order of groups."""
    names = list(chain.from_iterable(group["params"] for group in state["param_groups"]))
    return _renamed(state, {name: number for number, name in enumerate(names)})


def name_parameters(state: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """Converts an optimiser's state from parameter numbers to `names`, which are in order of groups."""
    numbers = chain.from_iterable(group["params"] for group in state["param_groups"])
    return _renamed(state, dict(zip(numbers, names, strict=True)))


def _renamed(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        "state": {names[old]: value for old, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [names[old] for old in group["params"]]}
            for group in state["param_groups"]
        ],
    }
