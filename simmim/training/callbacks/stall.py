"""Ends a run that makes no progress, because a rank or loader hangs; it can be resumed."""

import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from jaxtyping import Float
from torch import Tensor

from simmim.training.callbacks.nonfinite_guard import NonFiniteGuard
from simmim.training.callbacks.preemption import exit_code
from simmim.training.callbacks.rank_status import RankBoard
from simmim.training.callbacks.stall_thread import Activity, StallWatch
from simmim.utils.errors import UserError

# For what may take long and is not a stall: reading and writing checkpoints, compiling in the first
# step, callbacks after a validation.
LONG_SECONDS = 3600.0
# For the first batch and step: loader workers start, and kernels are tuned.
_FIRST_SECONDS = 60.0
_MOST_MINUTES = 365.0 * 24 * 60


class StallGuard(pl.Callback):
    """Ends a run in which no rank makes progress: in a step, a validation batch or data loading.

    A thread in each process watches it, because its main thread may be in a collective that never
    returns: another rank may be gone, stopped, or waiting for a loader that hangs. The ranks
    exchange what they are doing through small files in the run directory; if they do not share one,
    or there is only one process, each knows only its own state. The rank that ends the run prints
    in one line which ranks did not arrive and what each was doing; then all ranks exit with the
    exit code of an interruption, and kill their loader workers. Time in which a process is stopped
    (SIGSTOP) does not count.

    Args:
        minutes: time limit of a step. Reading or writing a checkpoint, compiling, and callbacks
            after a validation may take an hour more, the first step and batch a minute more (None:
            no limit).
        is_compiling: whether the first steps compile.

    Raises:
        UserError: `minutes` is not positive, or more than a year.
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
        """A timeout of collectives longer than any limit of this guard; None without limits."""
        if self.minutes is None:
            return None
        return timedelta(minutes=self.minutes, seconds=LONG_SECONDS + 10 * 60)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Starts the watching threads."""
        if self.minutes is None:
            return
        self._do("the start", LONG_SECONDS)
        board = None
        if trainer.world_size > 1:
            # A new name, so that nothing is read from an earlier launch, whose ranks are gone.
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
        """The first batch is being loaded."""
        self._wait_for_data("training", f"before step {trainer.global_step + 1}")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch has been loaded."""
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
        """The next batch is being loaded, unless a validation begins."""
        self._first_of.discard("training")
        self._wait_for_data("training", f"after step {trainer.global_step}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation images are being loaded."""
        self._wait_for_data("validation", "of the validation")

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The batch has been loaded."""
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
        """The next batch is being loaded, if there is one."""
        self._first_of.discard("validation")
        if batch_idx + 1 >= trainer.num_val_batches[dataloader_idx]:
            # Callbacks compute k-NN accuracy, draw reconstructions and write the report.
            self._do("the end of a validation", LONG_SECONDS)
        else:
            self._wait_for_data("validation", f"of the validation after batch {batch_idx + 1}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training continues, unless it has ended."""
        self._wait_for_data("training", f"after step {trainer.global_step}")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writing a checkpoint may take long."""
        self._do("saving a checkpoint", LONG_SECONDS)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A last checkpoint may be written."""
        self._do("the end of training", LONG_SECONDS)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Stops watching."""
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Stops watching."""
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
    """The callbacks of the option group `guard`: for a step's `numbers`, and for its `time`."""

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
    """Creates `NonFiniteGuard` with `max_skipped` and `spike_factor`, and `StallGuard`.

    The latter gets `stall_minutes`, and `is_compiling`: whether the first steps compile.
    """
    return Guards(
        NonFiniteGuard(run_dir, max_skipped, spike_factor),
        StallGuard(run_dir, stall_minutes, is_compiling=is_compiling),
    )
