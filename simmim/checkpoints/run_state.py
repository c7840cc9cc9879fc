"""What a checkpoint of a run says beside its weights: how far it came, with which options."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from simmim.checkpoints.checksums import require_intact
from simmim.checkpoints.sharded.merge import is_sharded, read_rest
from simmim.utils.errors import UserError, first_line


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint of a run says beside its weights, whose values are not read."""
    if is_sharded(path):
        return read_rest(path, map_location="meta")
    content: dict[str, Any] = torch.load(path, map_location="meta", weights_only=True)
    return content


def deciding_options(path: Path) -> dict[str, Any]:
    """The options that decided what a run came to, from one of its checkpoints; by dotted names."""
    callbacks: Mapping[str, Mapping[str, Any]] = read_state(path).get("callbacks", {})
    return next((state["options"] for state in callbacks.values() if "options" in state), {})


def resumed_step(path: Path) -> int:
    """The optimiser step that a run goes on from with this checkpoint."""
    return int(read_state(path)["global_step"])


def find_damage(path: Path) -> str | None:
    """Why a checkpoint cannot be read, or is not as it was written; None where it is whole."""
    try:
        require_intact(path)
        read_state(path)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        return first_line(error)
    return None


def require_resumable(path: Path) -> None:
    """Raises UserError unless a run of simmim wrote this checkpoint, whole."""
    damage = find_damage(path)
    if damage is not None:
        raise UserError(
            f"{path} is damaged or no checkpoint ({damage}); set resume= to another one, "
            "or resume=never to start anew"
        )
    require_run(path)


def require_run(path: Path) -> None:
    """Raises UserError unless a run of simmim wrote this checkpoint; reads no weight."""
    content = read_state(path)
    written = {"encoder"} if is_sharded(path) else {"encoder", "optimizer_states"}
    if not isinstance(content, dict) or not written <= content.keys():
        raise UserError(
            f"{path} is no checkpoint of a run; to start from its weights use init.checkpoint={path} "
            "resume=never"
        )
