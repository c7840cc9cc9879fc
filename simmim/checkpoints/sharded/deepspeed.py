"""DeepSpeed's ZeRO checkpoints: a folder with the whole weights, and each process's optimiser states.

They are read without DeepSpeed, and without running code from its pickles.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_WEIGHTS = Path("checkpoint", "mp_rank_00_model_states.pt")
_PARTS = "zero_pp_rank_*_mp_rank_00_optim_states.pt"


class _Inert:
    """Placeholder for a class of DeepSpeed: holds attributes, does nothing."""

    def __init__(self, *values: Any) -> None:
        self.values = values


_STAND_INS: list[Any] = [
    (_Inert, "deepspeed.utils.tensor_fragment.fragment_address"),
    (_Inert, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    (_Inert, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Inert, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
]


class _Part(NamedTuple):
    """One process's part of the optimiser: by group, flat states and each parameter's place in them."""

    state: Mapping[int, Mapping[str, Tensor]]
    param_groups: list[dict[str, Any]]
    places: list[Mapping[str, Any]]


def is_deepspeed(path: Path) -> bool:
    """Whether the path is the folder of a DeepSpeed checkpoint."""
    return (path / _WEIGHTS).is_file()


def read_deepspeed(path: Path, *, map_location: str = "cpu") -> dict[str, Any]:
    """All but the optimiser's states; `module` has the complete weights, in float32."""
    content: dict[str, Any] = torch.load(
        path / _WEIGHTS, map_location=map_location, weights_only=True
    )
    return content


def read_optimizer(path: Path, shapes: list[Mapping[str, torch.Size]]) -> dict[str, Any]:
    """The optimiser's states, merged, by name; `shapes` are the parameters' shapes, by group."""
    files = sorted((path / _WEIGHTS).parent.glob(_PARTS), key=_rank)
    parts = [_read_part(file) for file in files]
    groups = parts[0].param_groups
    state: dict[str, dict[str, Tensor]] = {}
    for number, by_name in enumerate(shapes):
        for name, shape in by_name.items():
            state[name] = {
                key: value if value.ndim == 0 else _joined(parts, number, name, key).view(shape)
                for key, value in parts[0].state[number].items()
            }
    return {
        "state": state,
        "param_groups": [
            {**group, "params": list(by_name)}
            for group, by_name in zip(groups, shapes, strict=True)
        ],
    }


def require_harmless(path: Path, rank: int) -> None:
    """Raises an error if a rank's file holds more than states, as DeepSpeed unpickles anything."""
    file = (path / _WEIGHTS).parent / _PARTS.replace("*", str(rank))
    with torch.serialization.safe_globals(_STAND_INS):
        torch.load(file, map_location="meta", weights_only=True)


def _rank(file: Path) -> int:
    return int(file.name.split("_")[3])


def _read_part(file: Path) -> _Part:
    with torch.serialization.safe_globals(_STAND_INS):
        content = torch.load(file, map_location="cpu", weights_only=True)
    held = content["optimizer_state_dict"]
    base = held["base_optimizer_state"]
    return _Part(base["state"], base["param_groups"], held["param_slice_mappings"])


def _joined(parts: list[_Part], group: int, name: str, key: str) -> Tensor:
    """One state of one parameter (flat), of which each process may hold a slice."""
    stretches = []
    for part in parts:
        place = part.places[group].get(name)
        if place is not None:
            stretches.append(part.state[group][key][place.start : place.start + place.numel])
    return torch.cat(stretches)
