"""Accuracy on training images: its gap to the validation accuracy shows overfitting."""

import pytorch_lightning as pl
import torch

from simmim.data.datamodule import ImageDataModule
from simmim.tasks.classification.task import ClassificationTask
from simmim.utils.errors import UserError
from simmim.utils.rng import derive_seed


class TrainAccuracy(pl.Callback):
    """Logs `train/top1` with each validation: the accuracy on training images without augmentation.

    A stream, which has no random access, is left out.

    Args:
        training_images: number of images to evaluate, the same ones each time (0: none).

    Raises:
        UserError: a negative number.
    """

    def __init__(self, training_images: int = 512) -> None:
        if training_images < 0:
            raise UserError(
                f"report.training_images {training_images} is negative; use 512, or 0 for none"
            )
        self.training_images = training_images
        self._has_begun = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts to measure: validations before training are left out."""
        self._has_begun = True

    @torch.no_grad()
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluates this rank's share of the images.

        During a validation the model is in evaluation mode, with the weight average if there is
        one.
        """
        images = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(images, ImageDataModule)
        assert isinstance(pl_module, ClassificationTask)
        if not self._has_begun or not self.training_images:
            return
        try:
            source = images.require_random_access()
        except UserError:
            return
        loader = images.evaluation_dataloader(source, self._choose(images))
        right, count = torch.zeros(2, device=pl_module.device)
        for batch in loader:
            own = trainer.strategy.batch_to_device(batch)
            # Under FSDP, all ranks have to run the same forward passes, so repeats run too.
            with trainer.precision_plugin.forward_context():
                logits = pl_module.model(pl_module.normalisation.normalise(own.image))
            counts = own.sample_index >= 0
            right += ((logits.argmax(dim=1) == own.label) & counts).sum()
            count += counts.sum()
        totals = trainer.strategy.reduce(torch.stack([right, count]), reduce_op="sum")
        pl_module.log("train/top1", totals[0] / totals[1])

    def _choose(self, images: ImageDataModule) -> list[int]:
        """A random choice over all images, because a folder lists one class after another."""
        generator = torch.Generator().manual_seed(derive_seed(images.seed, "report") % 2**63)
        order = torch.randperm(len(images.train), generator=generator)
        return sorted(order[: self.training_images].tolist())
