"""SimMIM pretraining as a LightningModule: loss, validation and metrics."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor
from torchmetrics import MeanMetric
from typing_extensions import Unpack

from simmim.data.dataset import Sample, is_counted
from simmim.models.losses import (
    LossRegion,
    check_target_window,
    image_l1,
    masked_l1_by_image,
    nearest_visible,
    visible_mean,
)
from simmim.models.masking import RandomMaskGenerator
from simmim.models.reconstruction import (
    Hidden,
    Reconstruction,
    fill_in,
    hide,
    loss_of_masked,
)
from simmim.models.simmim import SimMIM
from simmim.training.module import TrainingArguments, TrainingModule


class SimMIMModule(TrainingModule):
    """SimMIM pretraining: normalise, mask, predict, masked L1.

    Args:
        model: encoder, mask token and head.
        mask_generator: chooses the masked tokens of an image, by step and place in the batch.
        target_window: side in pixels of the neighbourhood that normalises targets (None: plain
            pixels).
        loss_region: the pixels that the training loss covers. Validation metrics always cover the
            masked ones.
        training: see `TrainingArguments`.
    """

    metric_names = (
        "val/loss",
        "val/baseline_visible_mean",
        "val/baseline_nearest_visible",
        "val/loss_over_baseline",
    )

    def __init__(
        self,
        model: SimMIM,
        *,
        mask_generator: RandomMaskGenerator,
        target_window: int | None = None,
        loss_region: LossRegion = "masked",
        **training: Unpack[TrainingArguments],
    ) -> None:
        super().__init__(model, **training)
        if target_window is not None:
            check_target_window(target_window)
        self.mask_generator = mask_generator
        self.target_window = target_window
        self.loss_region = loss_region
        # By default NaN would be ignored, and hide divergence; "disable" would ignore weights.
        self.val_loss = MeanMetric(nan_strategy=math.nan)
        self.val_baseline = MeanMetric(nan_strategy=math.nan)
        self.val_copying = MeanMetric(nan_strategy=math.nan)
        # Computed once: this baseline is slower than the mean, and the same in every validation.
        self._loss_of_copying: Tensor | None = None

    def report_facts(self) -> dict[str, Any]:
        """The share of an image that is masked."""
        masks = self.mask_generator
        return {"hidden_share": masks.num_masked / masks.num_patches}

    def hide(
        self, images: Real[Tensor, "b c H W"], places: Int[Tensor, " b"], *, step: int
    ) -> Hidden:
        """Normalises the images, draws their masks by `places` and `step`, and computes the targets."""
        mask = self.mask_generator(places, step=step)
        return hide(images, mask, self.normalisation, self.target_window)

    def reconstruct(
        self, images: Real[Tensor, "b c H W"], places: Int[Tensor, " b"], *, step: int
    ) -> Reconstruction:
        """Masks the images and reconstructs them."""
        assert isinstance(self.model, SimMIM)
        return fill_in(self.model, self.hide(images, places, step=step))

    def loss(
        self, images: Real[Tensor, "b c H W"], places: Int[Tensor, " b"], *, step: int
    ) -> Float[Tensor, ""]:
        """The training loss; if it covers masked pixels only, squares without any are not predicted."""
        assert isinstance(self.model, SimMIM)
        hidden = self.hide(images, places, step=step)
        if self.loss_region == "image":
            return image_l1(self.model(hidden.images, hidden.mask), hidden.target)
        most_tokens = self.mask_generator.most_tokens(self.model.encoder.stride)
        return loss_of_masked(self.model, hidden.images, hidden.mask, hidden.target, most_tokens)

    def reconstruct_held_out(
        self, images: Real[Tensor, "b c H W"], index: Int[Tensor, " b"]
    ) -> Reconstruction:
        """Like `reconstruct`, with masks that depend on the images' indices only: fixed over a run."""
        # Training steps are never negative, so validation masks are not among the training masks.
        return self.reconstruct(images, index, step=-1)

    def compute_loss(self, batch: Sample, batch_idx: int) -> Float[Tensor, ""]:
        """The loss; masks depend on the step and on each image's place in its global batch."""
        micro_batch = batch_idx % self.trainer.accumulate_grad_batches
        first = (micro_batch * self.trainer.world_size + self.global_rank) * self.batch_size
        places = torch.arange(first, first + len(batch.image), device=self.device)
        return self.loss(batch.image, places, step=self.global_step)

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Masked L1 of the prediction and of two baselines: visible mean and nearest visible pixels."""
        assert isinstance(batch.sample_index, Tensor)
        counted = is_counted(batch)
        result = self.reconstruct_held_out(batch.image, batch.sample_index)

        def measure(guess: Float[Tensor, "b c H W"]) -> Float[Tensor, " n"]:
            return masked_l1_by_image(guess, result.target, result.mask)[counted]

        self.val_loss.update(measure(result.prediction))
        self.val_baseline.update(measure(visible_mean(result.target, result.mask)))
        if self._loss_of_copying is None:
            self.val_copying.update(measure(nearest_visible(result.target, result.mask)))

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics."""
        values = self.log_validation(
            {"val/loss": self.val_loss, "val/baseline_visible_mean": self.val_baseline}
        )
        ratio = values["val/loss"] / values["val/baseline_visible_mean"]
        self.log("val/loss_over_baseline", ratio)
        if self._loss_of_copying is None:
            self._loss_of_copying = self.val_copying.compute()
        self.log("val/baseline_nearest_visible", self._loss_of_copying)
