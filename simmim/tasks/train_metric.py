"""The task's metric on training images: its gap to that of validation shows overfitting."""

import pytorch_lightning as pl
import torch

from simmim.data.datamodule import ImageDataModule
from simmim.tasks.module import LabelledModule
from simmim.utils.errors import UserError
from simmim.utils.rng import derive_seed


class TrainMetric(pl.Callback):
    """Logs `train/top1`, or what the task is judged by, with each validation.

    It is that of training images without augmentation. A stream, which has no random access, is
    left out.

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
        assert isinstance(pl_module, LabelledModule)
        if not self._has_begun or not self.training_images:
            return
        try:
            source = images.require_random_access()
        except UserError:
            return
        metrics = pl_module.create_metrics().to(pl_module.device)
        for batch in images.evaluation_dataloader(source, self._choose(images)):
            own = trainer.strategy.batch_to_device(batch)
            with trainer.precision_plugin.forward_context():
                pl_module.add_to(metrics, own)
        name = pl_module.quality().metric
        pl_module.log(f"train/{name}", metrics.metrics[f"val/{name}"].compute())

    def _choose(self, images: ImageDataModule) -> list[int]:
        """A random choice over all images, because a folder lists one class after another."""
        generator = torch.Generator().manual_seed(derive_seed(images.seed, "report") % 2**63)
        order = torch.randperm(len(images.train), generator=generator)
        return sorted(order[: self.training_images].tolist())
