"""What both stages train alike: seeding, optimiser and schedule, what a checkpoint says of itself."""

import random
from typing import Any, TypedDict

import numpy as np
import pytorch_lightning as pl
import torch
from torchmetrics import Metric
from typing_extensions import Unpack

from simmim.checkpoints.description import describe_encoder
from simmim.data.samples import Sample
from simmim.models import Classifier, SimMIM
from simmim.normalisation import Normalisation
from simmim.optim import AdamWRecipe
from simmim.randomness import derive_seed
from simmim.sharding import shard


class TrainingArguments(TypedDict):
    """What every task is told.

    `batch_size` is images per device and forward: with the trainer's world size and accumulation it
    gives each image's place in the global batch. `total_steps` and `steps_per_epoch` are optimiser
    steps, for the schedule.
    """

    normalisation: Normalisation
    optimization: AdamWRecipe
    batch_size: int
    total_steps: int
    steps_per_epoch: int
    seed: int


class TrainingTask(pl.LightningModule):
    """A model with an encoder, trained by a recipe over a known number of steps.

    Attributes:
        figures: names of the held-out figures that it logs.
    """

    figures: tuple[str, ...]

    def __init__(self, model: SimMIM | Classifier, **arguments: Unpack[TrainingArguments]) -> None:
        super().__init__()
        self.model = model
        self.normalisation = arguments["normalisation"]
        self.optimization = arguments["optimization"]
        self.batch_size = arguments["batch_size"]
        self.total_steps = arguments["total_steps"]
        self.steps_per_epoch = arguments["steps_per_epoch"]
        self.seed = arguments["seed"]
        self.validated_step: int | None = None
        self._losses: list[torch.Tensor] = []

    def configure_model(self) -> None:
        """Shares the weights out where the strategy says so (Lightning calls this on all ranks)."""
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh)

    def on_train_batch_start(self, batch: Sample, batch_idx: int) -> None:
        """Makes drop path and Mixup a function of (seed, step, rank)."""
        accumulation = self.trainer.accumulate_grad_batches
        micro_step = self.global_step * accumulation + batch_idx % accumulation
        seed = derive_seed(self.seed, "step", micro_step, self.global_rank)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)

    def note_loss(self, loss: torch.Tensor) -> None:
        """Remembers a micro-batch's loss for the step that it belongs to."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Logs the step's loss: the mean over its micro-batches and over all ranks."""
        # DeepSpeed's strategy calls this after each micro-batch.
        if len(self._losses) < self.trainer.accumulate_grad_batches:
            return
        self.log("train/loss", torch.stack(self._losses).mean(), sync_dist=True)
        self._losses.clear()

    def log_held_out(self, metrics: dict[str, Metric]) -> dict[str, torch.Tensor]:
        """Logs what these metrics came to over all ranks, resets them, and returns the values."""
        values = {name: metric.compute() for name, metric in metrics.items()}
        self.log_dict(values)
        for metric in metrics.values():
            metric.reset()
        self.validated_step = self.global_step
        return values

    def configure_optimizers(self) -> Any:
        """AdamW and its schedule, per step."""
        effective_batch = (
            self.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
        )
        optimizer = self.optimization.optimizer(
            self.model,
            effective_batch,
            depths=self.model.encoder.depths,
            # A fused step would undo fp16's scaling itself, after gradients are to be clipped.
            fused=self.trainer.precision != "16-mixed" and self.device.type in ("cpu", "cuda"),
        )
        scheduler = self.optimization.scheduler(
            optimizer, total_steps=self.total_steps, steps_per_epoch=self.steps_per_epoch
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what rebuilds the encoder without a config."""
        checkpoint["encoder"] = describe_encoder(self.model.encoder, self.normalisation)
