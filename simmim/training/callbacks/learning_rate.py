"""Logs the learning rate."""

from typing import Any

import pytorch_lightning as pl


class LearningRate(pl.Callback):
    """Logs `train/lr`: the largest learning rate of all parameter groups in this step."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Logs the rate before the scheduler changes it."""
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        pl_module.log("train/lr", rate, batch_size=1)
