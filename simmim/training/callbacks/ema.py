"""An exponential moving average of the weights: validated, saved, and what a run ends with."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging

from simmim.training.task import TrainingTask
from simmim.utils.errors import UserError


class WeightAverage(WeightAveraging):
    """Lightning's average, which leaves the trained weights in place until the last checkpoint stands.

    A run that is made longer goes on from those, not from their average. All weights are averaged at
    once, and nothing waits for the device.

    Args:
        decay: share of the average that stays at each step, in (0, 1).

    Raises:
        UserError: any other `decay`.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise UserError(f"ema.decay {decay} is not in (0, 1); use 0.9999, or null for none")
        super().__init__(use_buffers=False)
        self.decay = decay

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Brings the average to the device, where the model has only come after `setup`."""
        assert self._average_model is not None
        self._average_model.to(pl_module.device)
        # Asked in each step whether it is 0.
        self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Averages after each step but one that changed no weight."""
        assert isinstance(pl_module, TrainingTask)
        if pl_module.skipped_step:
            self._latest_update_step = trainer.global_step
        elif trainer.global_step > self._latest_update_step:
            self._update(pl_module)
            self._latest_update_step = trainer.global_step

    @torch.no_grad()
    def _update(self, trained: pl.LightningModule) -> None:
        """`AveragedModel.update_parameters` without buffers: they are derived tables, and constant."""
        average = self._average_model
        assert average is not None
        averaged, current = (tuple(model.parameters()) for model in (average.module, trained))
        if average.n_averaged == 0:
            torch._foreach_copy_(averaged, current)
        else:
            torch._foreach_lerp_(averaged, current, 1 - self.decay)
        average.n_averaged += 1

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the weights as they are: see `on_fit_end`."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the average in the model's place."""
        self._copy_average_to_current(pl_module)


def create_weight_average(decay: float | None) -> list[WeightAverage]:
    """The callback for `ema.decay`; none for null."""
    return [] if decay is None else [WeightAverage(decay)]
