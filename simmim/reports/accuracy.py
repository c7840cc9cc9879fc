"""The report of training with labels: it also measures what is learned of training images."""

from pathlib import Path

import pytorch_lightning as pl
import torch

from simmim.data.datamodule import ImageDataModule
from simmim.errors import UserError
from simmim.randomness import derive_seed
from simmim.reports.callback import RunReport
from simmim.tasks import ClassificationTask


class ClassificationReport(RunReport):
    """A `RunReport` that logs `train/top1` with each validation.

    It is of training images seen as held-out ones are, without augmentation: beside the held-out top-1
    it tells what was learned by heart. Images that are read one after another have none.

    Args:
        training_images: so many are judged, the same all along (0: none).

    Raises:
        UserError: a negative number.
    """

    def __init__(self, run_dir: str | Path, training_images: int = 512) -> None:
        super().__init__(run_dir)
        if training_images < 0:
            raise UserError(
                f"report.training_images {training_images} is negative; use 512, or 0 for none"
            )
        self.training_images = training_images

    @torch.no_grad()
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Each rank judges its share; validation has put the model into evaluation mode.

        And an average of the weights in their place: at the end of it they are back.
        """
        images = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(images, ImageDataModule)
        assert isinstance(pl_module, ClassificationTask)
        has_begun = "started" in self.facts
        if not has_begun or not self.training_images:
            return
        try:
            source = images.require_random_access()
        except UserError:
            return
        loader = images.evaluation_dataloader(source, self._choose(images))
        right, count = torch.zeros(2, device=pl_module.device)
        for batch in loader:
            own = trainer.strategy.batch_to_device(batch)
            # Ranks that share out the weights have to come together, for repeats too.
            with trainer.precision_plugin.forward_context():
                logits = pl_module.model(pl_module.normalisation.normalise(own.image))
            counts = own.sample_index >= 0
            right += ((logits.argmax(dim=1) == own.label) & counts).sum()
            count += counts.sum()
        totals = trainer.strategy.reduce(torch.stack([right, count]), reduce_op="sum")
        pl_module.log("train/top1", totals[0] / totals[1])

    def _choose(self, images: ImageDataModule) -> list[int]:
        """Spread at random over all, for a folder lists one class after another."""
        generator = torch.Generator().manual_seed(derive_seed(images.seed, "report") % 2**63)
        order = torch.randperm(len(images.train), generator=generator)
        return sorted(order[: self.training_images].tolist())
