"""Supervised training as a LightningModule: fine-tuning, or a linear layer on a frozen encoder."""

import random
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.data.mixup import Mixup
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from simmim.checkpoints.encoder_file import describe_encoder
from simmim.data.samples import Sample
from simmim.models import Classifier
from simmim.normalisation import Normalisation
from simmim.optim import AdamWRecipe
from simmim.randomness import derive_seed

Mode = Literal["full", "linear"]


class ClassificationTask(pl.LightningModule):
    """Trains a classifier: normalise, mix, cross-entropy against (smoothed, mixed) labels.

    Args:
        mode: `full` trains everything; `linear` freezes the encoder and trains the head alone.
        mixup: timm's Mixup and CutMix, or None for plain labels with `label_smoothing`.
        total_steps, steps_per_epoch: optimiser steps, for the schedule.
    """

    def __init__(
        self,
        model: Classifier,
        *,
        classes: tuple[str, ...],
        normalisation: Normalisation,
        optimization: AdamWRecipe,
        batch_size: int,
        total_steps: int,
        steps_per_epoch: int,
        seed: int = 0,
        mode: Mode = "full",
        mixup: Mixup | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.classes = classes
        self.normalisation = normalisation
        self.optimization = optimization
        self.batch_size = batch_size
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.mode = mode
        self.mixup = mixup
        self.label_smoothing = label_smoothing
        self.validated_step: int | None = None
        if mode == "linear":
            model.encoder.requires_grad_(False)
        self.val_loss = MeanMetric()
        self.top1 = MulticlassAccuracy(len(classes), average="micro")
        self.top5 = MulticlassAccuracy(len(classes), top_k=min(5, len(classes)), average="micro")

    def train(self, mode: bool = True) -> "ClassificationTask":
        """Switches to training; a frozen encoder never drops a path."""
        super().train(mode)
        if self.mode == "linear":
            self.model.encoder.eval()
        return self

    def on_train_batch_start(self, batch: Sample, batch_idx: int) -> None:
        """Makes drop path and Mixup a function of (seed, step, rank)."""
        accumulation = self.trainer.accumulate_grad_batches
        micro_step = self.global_step * accumulation + batch_idx % accumulation
        seed = derive_seed(self.seed, "step", micro_step, self.global_rank)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)

    def training_step(self, batch: Sample, batch_idx: int) -> Float[Tensor, ""]:
        """The loss of one batch."""
        images, labels = self.normalisation.normalise(batch.image), batch.label
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)
        assert isinstance(labels, Tensor)
        smoothing = 0.0 if self.mixup is not None else self.label_smoothing
        loss = F.cross_entropy(self.model(images).float(), labels, label_smoothing=smoothing)
        self.log("train/loss", loss, batch_size=len(images))
        return loss

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Counts right answers; repeats that only even out the ranks do not count."""
        assert isinstance(batch.sample_index, Tensor)
        assert isinstance(batch.label, Tensor)
        counted = batch.sample_index >= 0
        if not counted.any():
            return
        labels = batch.label[counted]
        logits = self.model(self.normalisation.normalise(batch.image[counted])).float()
        self.val_loss.update(F.cross_entropy(logits, labels), float(len(labels)))
        self.top1.update(logits, labels)
        self.top5.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        """Logs the held-out figures."""
        metrics = {"val/loss": self.val_loss, "val/top1": self.top1, "val/top5": self.top5}
        self.log_dict({name: metric.compute() for name, metric in metrics.items()})
        for metric in metrics.values():
            metric.reset()
        self.validated_step = self.global_step

    def configure_optimizers(self) -> Any:
        """AdamW and its schedule, per step."""
        accumulation = self.trainer.accumulate_grad_batches
        optimizer = self.optimization.optimizer(
            self.model,
            self.batch_size * self.trainer.world_size * accumulation,
            depths=self.model.encoder.depths,
        )
        scheduler = self.optimization.scheduler(
            optimizer, total_steps=self.total_steps, steps_per_epoch=self.steps_per_epoch
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what rebuilds the encoder and names the classes without a config."""
        checkpoint["encoder"] = describe_encoder(self.model.encoder, self.normalisation)
        checkpoint["classes"] = list(self.classes)
