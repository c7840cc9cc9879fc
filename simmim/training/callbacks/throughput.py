"""How fast a run goes, how long it waits for data, and how much memory it takes."""

import operator
import time
from typing import Any

import pytorch_lightning as pl

import simmim
from simmim.data.loader import TimedLoader
from simmim.utils.devices import peak_memory_bytes

# The first steps compile, tune and fill caches; they are no measure of the rest.
_WARMUP_BATCHES = 5


class Throughput(pl.Callback):
    """Logs `train/images_per_second` over all devices, and `train/data_wait`, a share of the time.

    And `train/peak_memory_bytes`, of this process or its device. Data and logging are included in the
    times. `images_per_second` and `data_wait` are means over the run but for its first batches and its
    validations, the latter of the first process; `first_step_seconds` is how long after the start of
    the command the first batch began.

    Args:
        batch_size: images of one device and micro-batch.
        log_every_n_steps: rates are means over so many optimiser steps.
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
        """Mean rate so far; None before it can be told."""
        if self._seconds == 0:
            return None
        return self._batches * self._images_per_batch / self._seconds

    @property
    def data_wait(self) -> float | None:
        """Share of the time that the run waited for data so far; None before it can be told."""
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
        """Times from the end of one batch to the end of the next, so that waiting for data counts."""
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
