"""Which checkpoint a run goes on from, and whether it may."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import DeepSpeedStrategy

from simmim.checkpoints.run_state import RunState, read_intact, require_resumable, require_run
from simmim.checkpoints.sharded.deepspeed import is_deepspeed, require_harmless
from simmim.checkpoints.sharded.layout import is_distributed
from simmim.training.distributed.fsdp import FullySharded
from simmim.training.run_dir.config_diff import STEPS, changed_options, describe, is_longer
from simmim.utils.console import warn
from simmim.utils.errors import UserError, first_line

# What no run can go on with, and why: the order of images is that of epochs of one length, and
# Lightning counts those of the other; the optimiser's states are by group of parameters.
_FIXED = {
    STEPS: "the steps of an epoch",
    "optim.layer_decay": "which parameters the optimiser has in a group",
}
# How often SLURM has queued this job again, and torchrun has started its processes again.
_RESTARTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")


def resume_checkpoint(resume: str, last: Path) -> RunState | None:
    """The state of the checkpoint that a run goes on from.

    `resume` is `auto` (the run's own newest whole one), `never`, or a path. A path is where a run
    begins: started again, it goes on from its own, if that is farther. A path to one of its own is
    where it goes back to. A job that SLURM has queued again, or that torchrun has started again, goes
    on whatever `resume` says.

    Raises:
        UserError: the path is missing or damaged, or all that the run wrote is.
    """
    is_restarted = any(int(os.environ.get(count, "0")) > 0 for count in _RESTARTS)
    if resume == "auto" or (resume == "never" and is_restarted):
        return newest_whole(last)
    if resume == "never":
        return None
    path = Path(resume)
    if not path.exists():
        raise UserError(f"resume={resume} does not exist; use auto, never or a checkpoint's path")
    named = require_resumable(path)
    if path.resolve().parent == last.parent.resolve() and not is_restarted:
        return named
    own = newest_whole(last)
    return own if own is not None and own.step >= named.step else named


def newest_whole(last: Path) -> RunState | None:
    """The state of a run's newest checkpoint that is whole; damaged ones are named and passed over.

    Raises:
        UserError: there are some, and none is whole.
    """
    damaged = []
    for path in _newest_first(last):
        try:
            if not path.exists():
                raise FileNotFoundError("it points to a checkpoint that is gone")
            state = read_intact(path)
        except Exception as error:  # torch raises many kinds for a damaged or foreign file
            damage = first_line(error)
        else:
            return require_run(state)
        damaged.append(f"{path} is damaged or no checkpoint ({damage})")
        warn(f"{damaged[-1]}; looking for an older one")
    if damaged:
        others = f", nor is any of {len(damaged) - 1} older ones whole" if damaged[1:] else ""
        raise UserError(
            f"{damaged[0]}{others}; set resume= to another one, or resume=never to start anew"
        )
    return None


def _newest_first(last: Path) -> Iterator[Path]:
    """`last.ckpt` and the kept ones before it; each file once.

    Not `best.ckpt`: that of a finished run with an average holds this in the weights' place.
    """
    seen: list[Path] = []
    # Beyond the last one, steps are left from before the run was started anew.
    steps = sorted(last.parent.glob("step-*.ckpt"), reverse=True)
    same = [path for path in steps if path.exists() and last.exists() and path.samefile(last)]
    older = [path for path in steps if not same or path < same[0]]
    for path in (last, *older):
        is_there = path.exists() or path.is_symlink()
        if is_there and not any(path.exists() and path.samefile(other) for other in seen):
            seen += [path] if path.exists() else []
            yield path


def require_same_options(
    resumed: RunState, options: Mapping[str, Any], *, is_forced: bool = False
) -> None:
    """Compares the options that decide a run's result with those that it has had so far.

    Raises:
        UserError: they differ in more than that the run became longer, unless `is_forced`; or in the
            steps of an epoch or the groups of the optimiser.
    """
    before = resumed.options
    now = dict(options)
    changed = changed_options(before, now) if before else []
    if not changed or is_longer(before, now, changed):
        return
    shown = describe(before, now, changed)
    fixed = next((why for name, why in _FIXED.items() if name in changed), None)
    if is_forced and fixed is None:
        warn(f"going on from {resumed.path} with other options, as resume_force=true says: {shown}")
        return
    force = (
        ", or resume_force=true to go on with these"
        if fixed is None
        else f"; resume_force=true cannot change {fixed}"
    )
    raise UserError(
        f"{resumed.path} is of a run with other options: {shown}. Use those that it began with, "
        f"another run_dir, resume=never to start anew{force}"
    )


def require_strategy(state: RunState, trainer: pl.Trainer) -> None:
    """Raises UserError for a checkpoint that this strategy cannot go on from."""
    strategy, resumed = trainer.strategy, state.path
    whole = f"python -m simmim.export checkpoint={resumed} format=checkpoint output=whole.ckpt"
    if is_distributed(resumed) and not isinstance(strategy, FullySharded):
        raise UserError(
            f"{resumed} was written in parts by trainer=fsdp; use that, or {whole} and "
            "resume=whole.ckpt"
        )
    if is_deepspeed(resumed):
        processes = state.content["dp_world_size"]
        if not isinstance(strategy, DeepSpeedStrategy) or trainer.world_size != processes:
            raise UserError(
                f"{resumed} was written in parts by trainer=deepspeed_zero1 on {processes} devices; "
                f"use both again, or {whole} and resume=whole.ckpt with trainer=fsdp or ddp"
            )
        try:
            require_harmless(resumed, trainer.global_rank)
        except Exception as error:  # torch raises many kinds for a damaged or foreign file
            raise UserError(
                f"{resumed} is damaged or holds more than weights ({first_line(error)}); set resume= "
                "to another one"
            ) from error
    elif isinstance(strategy, DeepSpeedStrategy):
        raise UserError(
            f"{resumed} was not written by trainer=deepspeed_zero1, which goes on from its own "
            "checkpoints alone; use trainer=fsdp or ddp, or start anew with its weights: "
            f"init.checkpoint={resumed} resume=never"
        )
