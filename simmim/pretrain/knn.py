"""Nearest-neighbour (k-NN) accuracy of the encoder during pretraining."""

import pytorch_lightning as pl
import torch

from simmim.data.datamodule import ImageDataModule
from simmim.evaluate.features import Features, extract_features
from simmim.evaluate.knn import NeighbourVote
from simmim.pretrain.module import SimMIMModule
from simmim.utils.errors import UserError
from simmim.utils.rng import derive_seed


class NearestNeighbours(pl.Callback):
    """Logs `val/knn_top1`: k-NN accuracy on validation images, with training images as neighbours.

    Training images are preprocessed like validation images, without augmentation. Training is not
    affected.

    Args:
        every_n_epochs: number of epochs between measurements, each in a validation; the metric is
            also measured after the last step (None: never).
        k: number of neighbours that vote.
        temperature: a vote weighs exp(cosine similarity / temperature).
        max_train_images: number of training images that may be neighbours, the same ones each time
            (None: all).

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
        """Names of the metrics that it logs."""
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
        """Gathers the neighbours' features on all ranks, and classifies this rank's images."""
        assert isinstance(pl_module, SimMIMModule)
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

    def _is_due(self, trainer: pl.Trainer, task: SimMIMModule) -> bool:
        if self.every_n_epochs is None:
            return False
        # The summary contains the metric of the final weights.
        is_last = trainer.global_step >= task.total_steps
        return is_last or (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _extract(
        self, trainer: pl.Trainer, task: SimMIMModule, images: ImageDataModule, *, held_out: bool
    ) -> Features:
        """Features of this rank's share; during validation the encoder is in evaluation mode."""
        if held_out:
            loader = images.evaluation_dataloader(images.val)
        else:
            source = images.require_random_access()
            loader = images.evaluation_dataloader(source, self._choose(images))
        with trainer.precision_plugin.forward_context():
            return extract_features(task.model.encoder, loader, task.normalisation, task.device)

    def _choose(self, images: ImageDataModule) -> list[int]:
        """A random choice of training images, because a folder lists one class after another."""
        generator = torch.Generator().manual_seed(derive_seed(images.seed, "neighbours") % 2**63)
        order = torch.randperm(len(images.train), generator=generator)
        return sorted(order[: self.max_train_images].tolist())


def _data(trainer: pl.Trainer) -> ImageDataModule:
    images = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(images, ImageDataModule)
    return images
