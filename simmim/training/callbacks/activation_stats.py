"""Logs the variance of each block's output."""

from contextlib import ExitStack
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from torch import Tensor

from simmim.models.swin.hooks import block_outputs, feature_variance, observe
from simmim.training.module import TrainingModule


class Amplitudes(pl.Callback):
    """Logs `amplitude/stage1_block1` and so on: variances of the blocks' outputs.

    They are means over devices, for the first micro-batch of each step that is logged; other steps
    cost nothing.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Tensor] = {}
        self._looking = ExitStack()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Observes the blocks if the step that begins will be logged."""
        assert isinstance(pl_module, TrainingModule)
        is_first = batch_idx % trainer.accumulate_grad_batches == 0
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        is_logged = (trainer.global_step + 1) % every == 0
        if is_first and is_logged:
            self._looking.enter_context(
                observe(block_outputs(pl_module.model.encoder), self._measure)
            )

    def _measure(self, name: str, features: Tensor) -> None:
        self._seen[name] = feature_variance(features)

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Float[Tensor, ""]
    ) -> None:
        """Adds the variances to the metrics that are logged with the step's loss."""
        assert isinstance(pl_module, TrainingModule)
        self._looking.close()
        if not self._seen:
            return
        means = trainer.strategy.reduce(torch.stack([*self._seen.values()]), reduce_op="mean")
        assert isinstance(means, Tensor)
        names = [f"amplitude/{name}" for name in self._seen]
        pl_module.to_log |= dict(zip(names, means, strict=True))
        self._seen = {}
