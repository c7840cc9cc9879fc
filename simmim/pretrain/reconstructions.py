"""Images of what the model sees and what it reconstructs."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import default_collate

from simmim.data.datamodule import ImageDataModule
from simmim.data.dataset import Sample, SampleKey, TransformedImages
from simmim.pretrain.module import SimMIMModule
from simmim.reconstruct.contact_sheet import contact_sheet, panels, save_sheet, sheets_in
from simmim.training.loggers.base import ImageLogger
from simmim.utils.console import warn
from simmim.utils.errors import UserError
from simmim.utils.files import remove
from simmim.utils.normalization import stretch


class Reconstructions(pl.Callback):
    """After each validation, draws held-out images, their visible part, and the reconstruction.

    Writes `reconstructions/step-….png` in the run directory, and logs the same to every logger that
    accepts images.

    Args:
        count: number of images (0: none).

    Raises:
        UserError: a negative `count`.
    """

    def __init__(self, run_dir: str | Path, count: int = 8) -> None:
        if count < 0:
            raise UserError(f"reconstructions.count {count} is negative; use 8, or 0 for none")
        self.folder = Path(run_dir, "reconstructions")
        self.count = count
        self._batch: Sample | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Removes the images of later steps, which a resumed run or one that starts over repeats."""
        if not trainer.is_global_zero:
            return
        for step, path in sheets_in(self.folder).items():
            if step > trainer.global_step:
                try:
                    remove(path)
                except OSError as error:
                    warn(f"{path} cannot be removed ({error.strerror}); it is of an earlier run")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the same images each time."""
        if self.count == 0:
            return
        assert isinstance(pl_module, SimMIMModule)
        batch = self._images(trainer, pl_module.device)
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            result = pl_module.reconstruct_held_out(
                batch.image, torch.as_tensor(batch.sample_index)
            )
        if not trainer.is_global_zero:
            return
        # Values of a type other than uint8 are not colours, and are stretched for display.
        is_picture = batch.image.dtype == torch.uint8
        show = pl_module.normalisation.invert if is_picture else stretch
        sheet = contact_sheet(panels(result, show))
        try:
            save_sheet(sheet, self.folder / f"step-{trainer.global_step:08d}.png")
        except OSError as error:
            warn(f"{self.folder} cannot be written to ({error.strerror}); training goes on")
        for logger in trainer.loggers:
            if isinstance(logger, ImageLogger):
                logger.log_picture("reconstructions", sheet, trainer.global_step)

    def _images(self, trainer: pl.Trainer, device: torch.device) -> Sample:
        """The first validation images, preprocessed as in validation."""
        if self._batch is None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            assert isinstance(data, ImageDataModule)
            images = TransformedImages(data.val, data.val_transform, data.seed, data.tolerance)
            shown = range(min(self.count, len(images)))
            batch: Sample = default_collate([images[SampleKey(0, index)] for index in shown])
            self._batch = Sample(
                batch.image.to(device), -1, torch.as_tensor(batch.sample_index, device=device)
            )
        return self._batch
