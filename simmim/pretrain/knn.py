"""What an encoder has learnt to tell apart while it pretrains, by its nearest neighbours."""

import pytorch_lightning as pl
import torch

from simmim.data.datamodule import ImageDataModule
from simmim.evaluate.features import Features, extract_features
from simmim.evaluate.knn import NeighbourVote
from simmim.pretrain.task import SimMIMTask
from simmim.utils.errors import UserError
from simmim.utils.rng import derive_seed


class NearestNeighbours(pl.Callback):
    """Logs `val/knn_top1`: held-out images whose class their training neighbours vote for.

    Training images are seen as held-out ones are, without augmentation. Nothing of training changes.

    Args:
        every_n_epochs: measure in the validations after every so many epochs, and after the last
            step (None: never).
        k: how many neighbours have a vote.
        temperature: a vote weighs exp(cosine similarity / temperature).
        max_train_images: so many training images may be neighbours, the same all along (None: all).

    Raises:
        UserError: a number that is not positive; before training, images without labels.
    """

    def __init__(
        self,
        every_n_epochs: int | None = None,
        k: int = 20,
        temperature: float = 0.07,
        max_train_images: int | None = 10000,
    ) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise UserError(
                f"knn.every_n_epochs {every_n_epochs} is not positive; use 10, or null for never"
            )
        if max_train_images is not None and max_train_images < 1:
            raise UserError(
                f"knn.max_train_images {max_train_images} is not positive; use 10000, or null for all"
            )
        self.every_n_epochs = every_n_epochs
        self.vote = NeighbourVote(k, temperature)
        self.max_train_images = max_train_images

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What it logs."""
        return () if self.every_n_epochs is None else ("val/knn_top1",)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Raises UserError, before any training, for images without labels or fewer than `k`."""
        if self.every_n_epochs is None:
            return
        images = _data(trainer)
        try:
            images.require_classes()
            images.require_random_access()
        except UserError as error:
            raise UserError(
                f"knn.every_n_epochs={self.every_n_epochs} needs labelled images: {error}; "
                "or set knn.every_n_epochs=null"
            ) from error
        self.vote.require_neighbours(len(self._choose(images)))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Each rank extracts its share; all know all neighbours and judge their own images."""
        assert isinstance(pl_module, SimMIMTask)
        if not self._is_due(trainer, pl_module):
            return
        images = _data(trainer)
        train = self._extract(trainer, pl_module, images, held_out=False)
        neighbours = train.gather(trainer.strategy.all_gather).counted()
        judged = self._extract(trainer, pl_module, images, held_out=True).counted()
        ranked = self.vote.rank_classes(
            judged.values,
            neighbours.values,
            neighbours.labels,
            num_classes=len(images.train.classes),
            top=1,
        )
        right = (ranked[:, 0] == judged.labels).sum()
        counts = torch.stack([right, right.new_tensor(len(judged.labels))])
        right, count = trainer.strategy.reduce(counts, reduce_op="sum")
        pl_module.log("val/knn_top1", right / count)

    def _is_due(self, trainer: pl.Trainer, task: SimMIMTask) -> bool:
        if self.every_n_epochs is None:
            return False
        # The metric of the final weights stands in the summary.
        is_last = trainer.global_step >= task.total_steps
        return is_last or (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _extract(
        self, trainer: pl.Trainer, task: SimMIMTask, images: ImageDataModule, *, held_out: bool
    ) -> Features:
        """Features of this rank's share. Validation has put the encoder into evaluation mode."""
        if held_out:
            loader = images.evaluation_dataloader(images.val)
        else:
            source = images.require_random_access()
            loader = images.evaluation_dataloader(source, self._choose(images))
        with trainer.precision_plugin.forward_context():
            return extract_features(task.model.encoder, loader, task.normalisation, task.device)

    def _choose(self, images: ImageDataModule) -> list[int]:
        """Training images spread at random over all, for a folder lists one class after another."""
        generator = torch.Generator().manual_seed(derive_seed(images.seed, "neighbours") % 2**63)
        order = torch.randperm(len(images.train), generator=generator)
        return sorted(order[: self.max_train_images].tolist())


def _data(trainer: pl.Trainer) -> ImageDataModule:
    images = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(images, ImageDataModule)
    return images
