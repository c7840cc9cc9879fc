"""The state of a run in its checkpoint, beside the weights: the step it reached, and its options."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from simmim.checkpoints.checksums import require_intact
from simmim.checkpoints.sharded.merge import is_sharded, read_rest
from simmim.utils.errors import UserError, first_line


class RunState(NamedTuple):
    """A run's checkpoint, read once: everything but the values of its tensors."""

    path: Path
    content: dict[str, Any]

    @property
    def step(self) -> int:
        """The optimiser step from which a run resumes."""
        return int(self.content["global_step"])

    @property
    def options(self) -> dict[str, Any]:
        """The options that decide the run's result, by dotted names; empty if it has none."""
        callbacks: Mapping[str, Mapping[str, Any]] = self.content.get("callbacks", {})
        return next((state["options"] for state in callbacks.values() if "options" in state), {})


def read_state(path: Path) -> dict[str, Any]:
    """The content of a run's checkpoint, with tensors on the meta device: values are not read."""
    if is_sharded(path):
        return read_rest(path, map_location="meta")
    content: dict[str, Any] = torch.load(path, map_location="meta", weights_only=True)
    return content


def read_intact(path: Path) -> RunState:
    """The state of a checkpoint, after its checksums are verified.

    Raises:
        Exception: it is damaged or not a checkpoint; torch raises many types for that.
    """
    require_intact(path)
    return RunState(path, read_state(path))


def find_damage(path: Path) -> str | None:
    """Why a checkpoint cannot be read, or how it has changed since it was written; None if intact."""
    try:
        read_intact(path)
    except Exception as error:
        return first_line(error)
    return None


def require_resumable(path: Path) -> RunState:
    """The state of a checkpoint to resume from.

    Raises:
        UserError: it is damaged, or no run of simmim wrote it.
    """
    try:
        state = read_intact(path)
    except Exception as error:
        raise UserError(
            f"{path} is damaged or no checkpoint ({first_line(error)}); set resume= to another one, "
            "or resume=never to start again"
        ) from error
    return require_run(state)


def require_run(state: RunState) -> RunState:
    """Returns the state; raises UserError unless a run of simmim wrote it."""
    path, content = state
    written = {"encoder"} if is_sharded(path) else {"encoder", "optimizer_states"}
    if not isinstance(content, dict) or not written <= content.keys():
        raise UserError(
            f"{path} is no checkpoint of a run; to start from its weights use init.checkpoint={path} "
            "resume=never"
        )
    return state
