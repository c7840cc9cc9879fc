"""Finds the checkpoint that a run resumes from, and checks that it can."""

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

# Options that cannot change on resume, with the reason: the order of images and Lightning's
# counters depend on the length of an epoch; the optimiser's states are stored by parameter group.
_FIXED = {
    STEPS: "the steps of an epoch",
    "optim.layer_decay": "which parameters the optimiser has in a group",
}
# How often SLURM has requeued this job, and torchrun has restarted its processes.
_RESTARTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")


def resume_checkpoint(resume: str, last: Path) -> RunState | None:
    """The state of the checkpoint that a run resumes from; None if it starts from step 0.

    `resume` is `auto` (the run's own newest intact checkpoint), `never`, or a path. With the path
    of another run's checkpoint, the run starts from that; started again, it resumes from its own
    newest one, if that has at least as many steps. With the path of one of its own checkpoints, it
    goes back to that. A job that SLURM has requeued, or that torchrun has restarted, resumes
    whatever `resume` says.

    Raises:
        UserError: the path is missing or damaged, or all checkpoints of the run are damaged.
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
    """The state of a run's newest intact checkpoint; damaged ones are skipped with a warning.

    Raises:
        UserError: there are checkpoints, and none is intact.
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
            f"{damaged[0]}{others}; set resume= to another one, or resume=never to start again"
        )
    return None


def _newest_first(last: Path) -> Iterator[Path]:
    """`last.ckpt` and the older checkpoints that were kept; each file once.

    Not `best.ckpt`: in a finished run with a weight average, it may have the average in place of
    the trained weights.
    """
    seen: list[Path] = []
    # Checkpoints of later steps are from before the run started over.
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
    """Compares the options that affect a run's result with those of the resumed checkpoint.

    Raises:
        UserError: they differ in more than a longer run, unless `is_forced`; or, in any case, in
            the steps of an epoch or the optimiser's parameter groups.
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
        f"another run_dir, resume=never to start again{force}"
    )


def require_strategy(state: RunState, trainer: pl.Trainer) -> None:
    """Raises UserError for a checkpoint that the trainer's strategy cannot resume from."""
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
            "checkpoints alone; use trainer=fsdp or ddp, or start again with its weights: "
            f"init.checkpoint={resumed} resume=never"
        )
