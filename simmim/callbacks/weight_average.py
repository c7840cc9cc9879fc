"""An exponential moving average of the weights: validated, saved, and what a run ends with."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging

from simmim.errors import UserError
from simmim.tasks.training import TrainingTask


class WeightAverage(EMAWeightAveraging):
    """Lightning's EMA, which leaves the trained weights in place until the last checkpoint stands.

    A run that is made longer goes on from those, not from their average.

    Args:
        decay: share of the average that stays at each step, in (0, 1).

    Raises:
        UserError: any other `decay`.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise UserError(f"ema.decay {decay} is not in (0, 1); use 0.9999, or null for none")
        # Derived tables are no weights: they are copied, not averaged.
        super().__init__(decay=decay, use_buffers=False)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Brings the average to the device, where the model has only come after `setup`."""
        assert self._average_model is not None
        self._average_model.to(pl_module.device)

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
        else:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the weights as they are: see `on_fit_end`."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the average in the model's place."""
        self._copy_average_to_current(pl_module)


def create_weight_average(decay: float | None) -> list[WeightAverage]:
    """The callback for `ema.decay`; none for null."""
    return [] if decay is None else [WeightAverage(decay)]
