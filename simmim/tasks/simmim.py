"""Pretraining as a LightningModule: what one step does, and what it logs."""

from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torchmetrics import MeanMetric

from simmim.checkpoints.encoder_file import describe_encoder
from simmim.data.samples import Sample
from simmim.losses import (
    LocalStatistics,
    check_target_window,
    local_statistics,
    masked_l1,
    visible_mean,
)
from simmim.masking import RandomMaskGenerator, enlarge
from simmim.models import SimMIM
from simmim.normalisation import Normalisation
from simmim.optim import AdamWRecipe
from simmim.randomness import derive_seed


class Reconstruction(NamedTuple):
    """One batch through the model: normalised images, what was hidden, and what was predicted.

    Where `statistics` is given, `target` and `prediction` are in units of each pixel's
    neighbourhood.
    """

    images: Float[Tensor, "b c H W"]
    mask: Bool[Tensor, "b H W"]
    target: Float[Tensor, "b c H W"]
    prediction: Float[Tensor, "b c H W"]
    statistics: LocalStatistics | None

    @property
    def loss(self) -> Float[Tensor, ""]:
        """Masked L1."""
        return masked_l1(self.prediction, self.target, self.mask)

    @property
    def predicted_images(self) -> Float[Tensor, "b c H W"]:
        """The prediction as normalised images, pasted into the visible pixels."""
        prediction = self.prediction.float()
        if self.statistics is not None:
            prediction = self.statistics.invert(prediction)
        return torch.where(self.mask.unsqueeze(1), prediction, self.images)


class SimMIMTask(pl.LightningModule):
    """SimMIM pretraining: normalise, mask, predict, masked L1.

    Args:
        batch_size: images per device and forward; with the trainer's world size and accumulation
            it gives each image's place in the global batch.
        total_steps, steps_per_epoch: optimiser steps, for the schedule.
        target_window: pixels of the neighbourhood for normalised targets (None: plain pixels).
    """

    def __init__(
        self,
        model: SimMIM,
        *,
        mask_generator: RandomMaskGenerator,
        normalisation: Normalisation,
        optimization: AdamWRecipe,
        batch_size: int,
        total_steps: int,
        steps_per_epoch: int,
        seed: int = 0,
        target_window: int | None = None,
    ) -> None:
        super().__init__()
        if target_window is not None:
            check_target_window(target_window)
        self.model = model
        self.mask_generator = mask_generator
        self.normalisation = normalisation
        self.optimization = optimization
        self.batch_size = batch_size
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.target_window = target_window
        self.validated_step: int | None = None
        self.val_loss = MeanMetric()
        self.val_baseline = MeanMetric()

    def reconstruct(
        self, images: UInt8[Tensor, "b c H W"], places: Int[Tensor, " b"], *, step: int
    ) -> Reconstruction:
        """Masks the images as their places at `step` say, and predicts them."""
        mask = self.mask_generator(places, step=step)
        normalised = self.normalisation.normalise(images)
        statistics = None
        target = normalised
        if self.target_window is not None:
            statistics = local_statistics(normalised, self.target_window)
            target = statistics.normalise(normalised)
        prediction = self.model(normalised, mask)
        pixels = enlarge(mask, self.model.encoder.patch_size)
        return Reconstruction(normalised, pixels, target, prediction, statistics)

    def reconstruct_held_out(
        self, images: UInt8[Tensor, "b c H W"], index: Int[Tensor, " b"]
    ) -> Reconstruction:
        """The same with masks that depend on the images' indices alone: fixed over a run."""
        # No step of training is negative, so held-out masks are none of those trained on.
        return self.reconstruct(images, index, step=-1)

    def on_train_batch_start(self, batch: Sample, batch_idx: int) -> None:
        """Makes drop path a function of (seed, step, rank)."""
        key = derive_seed(self.seed, "step", self._micro_step(batch_idx), self.global_rank)
        torch.manual_seed(key)

    def training_step(self, batch: Sample, batch_idx: int) -> Float[Tensor, ""]:
        """The loss of one batch."""
        count = len(batch.image)
        micro_batch = batch_idx % self.trainer.accumulate_grad_batches
        first = (micro_batch * self.trainer.world_size + self.global_rank) * self.batch_size
        places = torch.arange(first, first + count, device=self.device)
        loss = self.reconstruct(batch.image, places, step=self.global_step).loss
        self.log("train/loss", loss, batch_size=count)
        return loss

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Held-out loss, and that of predicting each image's visible mean."""
        assert isinstance(batch.sample_index, Tensor)
        counted = batch.sample_index >= 0
        if not counted.any():
            return
        result = self.reconstruct_held_out(batch.image[counted], batch.sample_index[counted])
        baseline = masked_l1(visible_mean(result.target, result.mask), result.target, result.mask)
        weight = float(counted.sum())
        self.val_loss.update(result.loss, weight)
        self.val_baseline.update(baseline, weight)

    def on_validation_epoch_end(self) -> None:
        """Logs the held-out figures."""
        loss, baseline = self.val_loss.compute(), self.val_baseline.compute()
        self.log_dict(
            {
                "val/loss": loss,
                "val/baseline_visible_mean": baseline,
                "val/loss_over_baseline": loss / baseline,
            },
            sync_dist=False,  # the metrics have been reduced over the ranks
        )
        self.validated_step = self.global_step
        self.val_loss.reset()
        self.val_baseline.reset()

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
        """Adds what rebuilds the encoder without a config."""
        checkpoint["encoder"] = describe_encoder(self.model.encoder, self.normalisation)

    def _micro_step(self, batch_idx: int) -> int:
        accumulation = self.trainer.accumulate_grad_batches
        return self.global_step * accumulation + batch_idx % accumulation
