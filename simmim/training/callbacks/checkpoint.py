"""Checkpoints by steps and by time, written to a temporary path and then renamed."""

import io
import logging
import math
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from torch.distributed.checkpoint.api import CheckpointException

from simmim.checkpoints.checksums import write_checksums
from simmim.checkpoints.run_state import read_state
from simmim.utils.errors import UserError
from simmim.utils.files import PARTIAL, flush, flush_entry, remove

log = logging.getLogger(__name__)

_STEPS_BETWEEN_CLOCKS = 20


@runtime_checkable
class _Buffered(Protocol):
    def flush(self) -> None: ...


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint directly to its path; Lightning's own goes through the system's /tmp."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes the checkpoint; raises OSError if the disk is full."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("wb") as file:
            file.write(content.getbuffer())


class Checkpoints(pl.Callback):
    """Writes `step-….ckpt`, `last.ckpt` and `best.ckpt` to `checkpoints` below the run directory.

    A checkpoint that cannot be written, because the disk is full, is skipped with a warning;
    earlier ones stay. At the end of the run this is an error.

    Args:
        every_n_steps: interval in optimiser steps (None: not by steps).
        every_minutes: minutes to wait after the last one (None: not by time).
        keep: how many of the newest to keep; `last.ckpt` is the newest of them.
        monitor: the validation metric whose best value decides `best.ckpt` (None: no `best.ckpt`).
        mode: whether the largest (`max`) or the smallest (`min`) value is best (None: `min` for a
            loss, `max` for other metrics).

    Raises:
        UserError: a number that is not positive.
    """

    def __init__(
        self,
        run_dir: str | Path,
        every_n_steps: int | None = None,
        every_minutes: float | None = 30.0,
        keep: int = 1,
        monitor: str | None = None,
        mode: Literal["max", "min"] | None = None,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(
                f"save.every_n_steps {every_n_steps} is not positive; use 1000, or null"
            )
        if every_minutes is not None and every_minutes <= 0:
            raise UserError(f"save.every_minutes {every_minutes} is not positive; use 30, or null")
        if keep < 1:
            raise UserError(f"save.keep {keep} would keep no checkpoint; use 1 or more")
        self.folder = Path(run_dir, "checkpoints")
        self.every_n_steps = every_n_steps
        self.every_seconds = every_minutes * 60 if every_minutes is not None else None
        self.keep = keep
        self.monitor = monitor
        self.mode = mode or ("min" if "loss" in (monitor or "") else "max")
        self.best_value: float | None = None
        self.best_step: int | None = None
        self.options: dict[str, Any] = {}  # those that affect the result
        self._saved_step = -1
        self._seen_step = -1
        self._saved_time = time.monotonic()

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best value of `monitor`."""
        return self.folder / "best.ckpt"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock; the state that a resumed run starts from is already saved."""
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()
        self._seen_step = trainer.global_step
        if (
            trainer.world_size > 1
            and trainer.strategy.broadcast(self._seen_step) != self._seen_step
        ):
            raise UserError(
                f"process {trainer.global_rank} would go on from step {self._seen_step} and the first "
                f"one from another: they do not read the same {self.folder}; set resume=PATH"
            )
        if trainer.is_global_zero:
            for left in (*self.folder.glob(f"*{PARTIAL}"), *self.folder.glob("*.old")):
                remove(left)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Writes a checkpoint if a step has just finished and one is due."""
        # A checkpoint between two micro-batches would lose the gradients accumulated so far.
        if trainer.global_step == self._seen_step:
            return
        self._seen_step = trainer.global_step
        by_steps = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        waited = time.monotonic() - self._saved_time
        by_time = self.every_seconds is not None and waited >= self.every_seconds
        # Written here, while Lightning still counts the epoch as unfinished, so that a longer run
        # can resume in the middle of it.
        is_last = trainer.global_step == trainer.max_steps
        if by_steps or is_last or self._agree(trainer, by_time):
            self.save(trainer)

    def _agree(self, trainer: pl.Trainer, by_time: bool) -> bool:
        """Whether all ranks write now, by rank 0's clock; asked rarely, because that takes time."""
        if trainer.world_size == 1:
            return by_time
        if self.every_seconds is None or trainer.global_step % _STEPS_BETWEEN_CLOCKS:
            return False
        return bool(trainer.strategy.broadcast(by_time))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes `best.ckpt` if the trained weights are better than any before."""
        if self.monitor is None or trainer.global_step == 0:
            return
        # Some metrics are not measured in every validation.
        if self.monitor not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[self.monitor])
        if not self._improves(value):
            return
        before = self.best_value, self.best_step
        self.best_value, self.best_step = value, trainer.global_step
        error = self._write(trainer, self.best)
        if error is not None:
            self.best_value, self.best_step = before
            log.warning(f"{self.best} cannot be written ({error}); the one before stays")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the final state."""
        self.save(trainer, is_needed=True)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Removes older checkpoints that a run killed after its last checkpoint had not removed."""
        if trainer.is_global_zero:
            self._remove_older(self.folder / f"step-{trainer.global_step:08d}.ckpt")

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, and the options of the run."""
        return {
            "monitor": self.monitor,
            "best_value": self.best_value,
            "best_step": self.best_step,
            "options": self.options,
        }

    def require_metric(self, metrics: Sequence[str]) -> None:
        """Raises UserError unless `monitor` is one of the metrics that the run will log."""
        if self.monitor is not None and self.monitor not in metrics:
            raise UserError(
                f"save.monitor={self.monitor} is no validation metric of this run; "
                f"use {', '.join(metrics)}, or null"
            )

    def remember_best(self, resumed_step: int) -> None:
        """Restores the best value up to the step that the run resumes from, to compare with."""
        if not self.best.exists():
            return
        try:
            content = read_state(self.best)
        except Exception as error:  # torch raises many kinds for a damaged file
            log.warning(f"{self.best} cannot be read ({error}); the best is searched for again")
            return
        state = content["callbacks"][self.state_key]
        if state["monitor"] == self.monitor and state["best_step"] <= resumed_step:
            self.best_value, self.best_step = state["best_value"], state["best_step"]

    def _improves(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self.best_value is None:
            return True
        return value > self.best_value if self.mode == "max" else value < self.best_value

    def save(self, trainer: pl.Trainer, *, is_needed: bool = False) -> None:
        """Writes the state of this step, unless it is saved, and removes all but the newest `keep`.

        Raises:
            UserError: it cannot be written and `is_needed`, because the run ends here.
        """
        if trainer.global_step == self._saved_step:
            return
        path = self.folder / f"step-{trainer.global_step:08d}.ckpt"
        # A run that resumes from here does not log earlier steps again.
        _flush_loggers(trainer)
        error = self._write(trainer, path, is_newest=True)
        self._saved_time = time.monotonic()
        if error is not None:
            if is_needed:
                saved = f"step {self._saved_step}" if self._saved_step > 0 else "the beginning"
                raise UserError(
                    f"{path} cannot be written ({error}); make room or mend it, and the same command "
                    f"goes on from {saved}"
                )
            log.warning(
                f"{path} cannot be written ({error}); training goes on, and the next is due"
            )
            return
        if trainer.is_global_zero:
            self._remove_older(path)
        trainer.strategy.barrier("checkpoint written")
        self._saved_step = trainer.global_step

    def _remove_older(self, path: Path) -> None:
        """Removes all but the newest up to this one; warns if one cannot be removed."""
        # Later steps are from before the run was started again from an earlier one; they are kept.
        steps = [old for old in sorted(self.folder.glob("step-*.ckpt")) if old <= path]
        for old in steps[: -self.keep]:
            try:
                remove(old)
            except OSError as error:
                log.warning(f"{old} cannot be removed ({_first_line(error)}); training goes on")

    def _write(self, trainer: pl.Trainer, path: Path, *, is_newest: bool = False) -> str | None:
        """Writes the run's state atomically; returns None or an error's text, on all ranks.

        If it `is_newest`, `last.ckpt` then points to it.
        """
        beside = path.with_name(path.name + PARTIAL)
        error = None
        try:
            trainer.save_checkpoint(beside)
        except (OSError, CheckpointException) as raised:
            error = _first_line(raised)
            trainer.strategy.barrier("Trainer.save_checkpoint")  # which this rank did not reach
        if trainer.is_global_zero:
            try:
                if error is None:
                    if beside.is_dir():
                        write_checksums(beside)
                    flush(beside)
                    _replace(beside, path)
                    if is_newest:
                        _point(self.last, path)
            except OSError as raised:
                error = _first_line(raised)
            if error is not None:
                # If not even that is possible, it is removed when the run is started again.
                with suppress(OSError):
                    remove(beside)
        if trainer.world_size > 1:
            error = trainer.strategy.broadcast(error)
        return error


def _flush_loggers(trainer: pl.Trainer) -> None:
    """Writes buffered metrics to disk; a logger warns by itself if it cannot."""
    for logger in trainer.loggers:
        if isinstance(logger, _Buffered):
            logger.flush()


def _replace(written: Path, path: Path) -> None:
    """Renames what was just written to its path; what was there before is removed after that."""
    before = path.with_name(path.name + ".old")
    if path.is_dir() or (written.is_dir() and path.exists()):
        remove(before)
        os.replace(path, before)
    os.replace(written, path)
    flush_entry(path)
    remove(before)


def _point(last: Path, newest: Path) -> None:
    """Makes `last` a link to `newest` atomically, or a copy where links are not possible."""
    beside = last.with_name(last.name + PARTIAL)
    beside.unlink(missing_ok=True)
    try:
        if newest.is_dir():
            beside.symlink_to(newest.name)
        else:
            os.link(newest, beside)
    except OSError:
        if newest.is_dir():
            raise
        shutil.copyfile(newest, beside)
        flush(beside)
    os.replace(beside, last)
    flush_entry(last)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
