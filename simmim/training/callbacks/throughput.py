"""How fast a run goes, how long it waits for data, and how much memory it takes."""

import operator
import time
from typing import Any

import pytorch_lightning as pl

import simmim
from simmim.data.loader import TimedLoader
from simmim.utils.devices import peak_memory_bytes

# The first batches compile, tune and fill caches; they are not representative.
_WARMUP_BATCHES = 5


class Throughput(pl.Callback):
    """Logs images per second, the share of time spent waiting for data, and peak memory.

    `train/images_per_second` is over all devices and includes data loading and logging;
    `train/data_wait` is in [0, 1] and of this process; `train/peak_memory_bytes` is of this process
    or its device. The properties `images_per_second` and `data_wait` are means over the run without
    its first batches and its validations; `first_step_seconds` is the time from the start of the
    command to the first batch.

    Args:
        batch_size: images per device and micro-batch.
        log_every_n_steps: logged rates are means over this many optimiser steps.
    """

    def __init__(self, batch_size: int, log_every_n_steps: int) -> None:
        self.batch_size = batch_size
        self.log_every_n_steps = log_every_n_steps
        self._seen = 0
        self._batches = 0
        self._seconds = 0.0
        self._waited = 0.0
        self._last_end: float | None = None
        self._last_waited = 0.0
        self._recent: tuple[int, float, float] = (0, 0.0, 0.0)
        self._images_per_batch = batch_size
        self.first_step_seconds: float | None = None

    @property
    def images_per_second(self) -> float | None:
        """Mean rate so far; None before it is known."""
        if self._seconds == 0:
            return None
        return self._batches * self._images_per_batch / self._seconds

    @property
    def data_wait(self) -> float | None:
        """Share of the time spent waiting for data so far; None before it is known."""
        return None if self._seconds == 0 else self._waited / self._seconds

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts the images of all devices."""
        self._images_per_batch = self.batch_size * trainer.world_size

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Notes when the first step began."""
        if self.first_step_seconds is None:
            self.first_step_seconds = time.monotonic() - simmim.STARTED

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measures from the end of one batch to that of the next, so that waiting for data counts."""
        now = time.monotonic()
        loader = trainer.train_dataloader
        waited = loader.waited_seconds if isinstance(loader, TimedLoader) else 0.0
        self._seen += 1
        if self._last_end is not None and self._seen > _WARMUP_BATCHES:
            self._batches += 1
            self._seconds += now - self._last_end
            self._waited += waited - self._last_waited
        self._last_end, self._last_waited = now, waited
        if trainer.global_step % self.log_every_n_steps == 0:
            sums = (self._batches, self._seconds, self._waited)
            batches, seconds, waited = map(operator.sub, sums, self._recent)
            peak = peak_memory_bytes(trainer.strategy.root_device)
            metrics = {"train/peak_memory_bytes": float(peak)}
            if batches:
                metrics |= {
                    "train/images_per_second": batches * self._images_per_batch / seconds,
                    "train/data_wait": waited / seconds,
                }
                self._recent = sums
            pl_module.log_dict(metrics, batch_size=self.batch_size)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the validation out of the next batch's time."""
        self._last_end = None
