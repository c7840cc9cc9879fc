"""An exponential moving average of the weights, used in validation and as the final weights."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging

from simmim.training.module import TrainingModule
from simmim.utils.errors import UserError


class WeightAverage(WeightAveraging):
    """Lightning's `WeightAveraging`; the model keeps its trained weights until the last checkpoint.

    So a run that is made longer continues from the trained weights, not from their average. All
    weights are averaged in one call, and nothing waits for the device.

    Args:
        decay: weight of the previous average at each step, in (0, 1).

    Raises:
        UserError: `decay` out of range.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise UserError(f"ema.decay {decay} is not in (0, 1); use 0.9999, or null for none")
        super().__init__(use_buffers=False)
        self.decay = decay

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Moves the average to the device; the model was moved there only after `setup`."""
        assert self._average_model is not None
        self._average_model.to(pl_module.device)
        # On the CPU, because each step compares it with 0, which must not wait for the device.
        self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Updates the average after each step, except skipped ones."""
        assert isinstance(pl_module, TrainingModule)
        if pl_module.skipped_step:
            self._latest_update_step = trainer.global_step
        elif trainer.global_step > self._latest_update_step:
            self._update(pl_module)
            self._latest_update_step = trainer.global_step

    @torch.no_grad()
    def _update(self, trained: pl.LightningModule) -> None:
        """`AveragedModel.update_parameters` without buffers, which are constant tables."""
        average = self._average_model
        assert average is not None
        averaged, current = (tuple(model.parameters()) for model in (average.module, trained))
        if average.n_averaged == 0:
            torch._foreach_copy_(averaged, current)
        else:
            torch._foreach_lerp_(averaged, current, 1 - self.decay)
        average.n_averaged += 1

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the weights as they are, unlike Lightning: see `on_fit_end`."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copies the average into the model."""
        self._copy_average_to_current(pl_module)


def create_weight_average(decay: float | None) -> list[WeightAverage]:
    """The callback for `ema.decay`; none for null."""
    return [] if decay is None else [WeightAverage(decay)]
