"""A run that gets no further, as where a rank or a loader hangs, ends and can be resumed."""

import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from jaxtyping import Float
from torch import Tensor

from simmim.training.callbacks.nonfinite_guard import NonFiniteGuard
from simmim.training.callbacks.preemption import exit_code
from simmim.training.callbacks.rank_board import RankBoard
from simmim.training.callbacks.stall_watch import Activity, StallWatch
from simmim.utils.errors import UserError

# What may take long and is no stall: reading and writing checkpoints, the first step of what is
# compiled, what follows a validation.
LONG_SECONDS = 3600.0
# Loader workers start, and kernels are chosen.
_FIRST_SECONDS = 60.0
_MOST_MINUTES = 365.0 * 24 * 60


class StallGuard(pl.Callback):
    """Ends a run of which no rank gets further: a step, a batch of a validation, or waiting for data.

    A thread in each process watches it, for its main thread may be in a collective that never returns
    because another rank is gone, stopped, or waits for a loader that hangs. The ranks tell each other
    what they are doing by small files in the run directory; where they do not share one, or there is
    one process, each knows of itself alone. Who ends the run says in one line which ranks did not
    arrive and what each was doing; all then leave with the exit code of an interruption, and their
    loader workers with them. Time in which a process is stopped (SIGSTOP) does not count.

    Args:
        minutes: how long a step may take. To read or write a checkpoint, to compile, and what follows a
            validation may take an hour more, the first step and batch a minute (None: anything may
            take for ever).
        is_compiling: whether the first steps compile.

    Raises:
        UserError: no time at all.
    """

    def __init__(
        self, run_dir: str | Path, minutes: float | None = 30.0, *, is_compiling: bool = False
    ) -> None:
        if minutes is not None and not 0 < minutes <= _MOST_MINUTES:
            what = "more than a year" if minutes > _MOST_MINUTES else "not positive"
            raise UserError(f"guard.stall_minutes {minutes} is {what}; use 30, or null")
        self.run_dir = Path(run_dir)
        self.minutes = minutes
        self.is_compiling = is_compiling
        self._activity = Activity("the start", 0, LONG_SECONDS)
        self._first_of = {"training", "validation"}
        self._watch: StallWatch | None = None

    @property
    def longest_wait(self) -> timedelta | None:
        """Longer than a rank may wait for others; None: not known."""
        if self.minutes is None:
            return None
        return timedelta(minutes=self.minutes, seconds=LONG_SECONDS + 10 * 60)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Starts to watch."""
        if self.minutes is None:
            return
        self._do("the start", LONG_SECONDS)
        board = None
        if trainer.world_size > 1:
            # Of another start, whose ranks are gone, nothing is read.
            name = trainer.strategy.broadcast(uuid.uuid4().hex)
            board = RankBoard(self.run_dir, name, trainer.global_rank, trainer.world_size)
        self._watch = StallWatch(
            lambda: self._activity,
            self.minutes,
            board,
            self.run_dir / "checkpoints" / "last.ckpt",
            exit_code(trainer),
        )
        self._watch.start()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first batch is loaded."""
        self._wait_for_data("training", f"before step {trainer.global_step + 1}")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is there."""
        self._compute("training", f"training step {trainer.global_step + 1}")

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Float[Tensor, ""]
    ) -> None:
        """The forward pass is over."""
        self._go_on()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The backward pass is over."""
        self._go_on()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """The next batch is loaded, unless a validation begins."""
        self._first_of.discard("training")
        self._wait_for_data("training", f"after step {trainer.global_step}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Held-out images are loaded."""
        self._wait_for_data("validation", "of the validation")

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The batch is there."""
        self._compute("validation", f"validation batch {batch_idx + 1}")

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The next batch is loaded, if there is one."""
        self._first_of.discard("validation")
        if batch_idx + 1 >= trainer.num_val_batches[dataloader_idx]:
            # Neighbours are looked for, pictures drawn and pages written.
            self._do("the end of a validation", LONG_SECONDS)
        else:
            self._wait_for_data("validation", f"of the validation after batch {batch_idx + 1}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training goes on, if there is some to come."""
        self._wait_for_data("training", f"after step {trainer.global_step}")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writing takes as long as it takes."""
        self._do("saving a checkpoint", LONG_SECONDS)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """There may be a last checkpoint to write."""
        self._do("the end of training", LONG_SECONDS)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Watches no longer."""
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Watches no longer."""
        self._stop()

    def _stop(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def _wait_for_data(self, kind: str, where: str) -> None:
        self._do(f"waiting for data {where}", _FIRST_SECONDS if kind in self._first_of else 0.0)

    def _compute(self, kind: str, what: str) -> None:
        first = LONG_SECONDS if self.is_compiling else _FIRST_SECONDS
        self._do(what, first if kind in self._first_of else 0.0)

    def _do(self, what: str, more_seconds: float) -> None:
        if self.minutes is not None:
            seconds = self.minutes * 60 + more_seconds
            self._activity = Activity(what, self._activity.number + 1, seconds)

    def _go_on(self) -> None:
        before = self._activity
        self._activity = before._replace(number=before.number + 1)


class Guards(NamedTuple):
    """What `guard` names: of a step's numbers, and of its time."""

    numbers: NonFiniteGuard
    time: StallGuard


def create_guards(
    run_dir: str | Path,
    max_skipped: int = 10,
    spike_factor: float | None = 3.0,
    stall_minutes: float | None = 30.0,
    *,
    is_compiling: bool = False,
) -> Guards:
    """`NonFiniteGuard` with `max_skipped` and `spike_factor`, and `StallGuard`.

    It is given `stall_minutes`, and `is_compiling` where the first steps compile.
    """
    return Guards(
        NonFiniteGuard(run_dir, max_skipped, spike_factor),
        StallGuard(run_dir, stall_minutes, is_compiling=is_compiling),
    )
