"""The learning rate in the log."""

from typing import Any

import pytorch_lightning as pl


class LearningRate(pl.Callback):
    """Logs `train/lr`: the rate of the layer that learns fastest, for the step just taken."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Logs before the scheduler moves on."""
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        pl_module.log("train/lr", rate, batch_size=1)
