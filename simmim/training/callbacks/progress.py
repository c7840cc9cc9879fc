"""The progress of a run: a bar with step, loss, images/s and time left; lines in evaluation."""

import time
from collections.abc import Iterator
from typing import Any, TypeVar

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch.utils.data import DataLoader

from simmim.data.loader import MUCH
from simmim.training.callbacks.throughput import Throughput

# Without a terminal (a log file, a batch job), a line is printed this often.
_SECONDS_BETWEEN_LINES = 15.0
_SECONDS_BETWEEN_REDRAWS = 0.5


class _Reporter(ProgressBar):
    """Prints on rank 0 only."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True

    def disable(self) -> None:
        """Shows nothing (Lightning calls this on all ranks but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Shows progress."""
        self._enabled = True


class RunProgress(_Reporter):
    """A rich bar over all optimiser steps on a terminal; elsewhere a plain line every 15 seconds.

    It shows the rate that `throughput` has measured.
    """

    def __init__(self, throughput: Throughput) -> None:
        super().__init__()
        self.throughput = throughput
        self._console = get_console()
        self._progress: Progress | None = None
        self._started = 0.0
        self._first_step = 0
        self._total_steps = 0
        self._last_line = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the bar."""
        super().on_train_start(trainer, pl_module)
        self._started = self._last_line = time.monotonic()
        self._first_step = trainer.global_step
        self._total_steps = int(trainer.estimated_stepping_batches)
        if self._enabled and self._console.is_terminal:
            self._progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[metrics]}"),
                console=self._console,
            )
            self._progress.add_task("train", total=self._total_steps, metrics="")
            self._progress.start()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Updates the bar, or prints a line if one is due."""
        if not self._enabled:
            return
        now = time.monotonic()
        if self._progress is not None:
            if now - self._last_line >= _SECONDS_BETWEEN_REDRAWS:
                self._last_line = now
                self._draw(self._progress, trainer, now)
        elif not self._console.is_terminal and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            step = f"step {trainer.global_step}/{self._total_steps}"
            self._console.print(
                f"{step}  {self._metrics(trainer, now)}", highlight=False, soft_wrap=True
            )

    def _draw(self, progress: Progress, trainer: pl.Trainer, now: float) -> None:
        metrics = self._metrics(trainer, now)
        progress.update(progress.task_ids[0], completed=trainer.global_step, metrics=metrics)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the finished bar on the screen."""
        if self._progress is not None:
            self._draw(self._progress, trainer, time.monotonic())
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Stops the bar and releases the terminal."""
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _metrics(self, trainer: pl.Trainer, now: float) -> str:
        metrics = []
        loss = trainer.callback_metrics.get("train/loss")
        if loss is not None:
            metrics.append(f"loss {float(loss):.4f}")
        rate = self.throughput.images_per_second
        if rate is not None:
            metrics.append(f"{rate:.0f} images/s" if rate >= 10 else f"{rate:.1f} images/s")
        wait = self.throughput.data_wait
        if wait is not None and wait > MUCH:
            metrics.append(f"{wait:.0%} waiting for data")
        done = trainer.global_step - self._first_step
        if done > 0:
            left = (now - self._started) / done * (self._total_steps - trainer.global_step)
            metrics.append(f"{show_duration(left)} left")
        return "  ".join(metrics)


class EvaluationProgress(_Reporter):
    """Prints a line every 15 seconds during an evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: _Lines | None = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        total = sum(int(count) for count in trainer.num_val_batches)
        self._lines = _Lines("held-out images", total) if self._enabled else None

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Prints a line if one is due."""
        if self._lines is not None:
            self._lines.advance(batch_idx + 1)


Batch = TypeVar("Batch")


def report_progress(batches: DataLoader[Batch], what: str) -> Iterator[Batch]:
    """Yields the batches, and prints every 15 seconds how many there were, of `what`."""
    lines = _Lines(what, len(batches))
    for number, batch in enumerate(batches, start=1):
        yield batch
        lines.advance(number)


class _Lines:
    def __init__(self, what: str, total: int) -> None:
        self.what = what
        self.total = total
        self._started = self._last_line = time.monotonic()

    def advance(self, done: int) -> None:
        now = time.monotonic()
        if now - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        left = (now - self._started) / done * (self.total - done)
        get_console().print(
            f"{self.what}: batch {done}/{self.total}  {show_duration(left)} left",
            highlight=False,
            soft_wrap=True,
        )


def show_duration(seconds: float) -> str:
    """`1:05` for 65 seconds, `2:00:00` for two hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
