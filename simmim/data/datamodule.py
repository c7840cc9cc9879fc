"""Sources into batches: the loaders of a run, and one function for each kind of data."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from simmim.data.demo import DemoImages
from simmim.data.imagefolder import FolderSplits, ImageFolder, held_out_folder, split_folder
from simmim.data.samples import ImageSource, OnError, Sample, Transform, TransformedImages
from simmim.data.sampling import EvaluationSampler, TrainSampler
from simmim.data.transforms import CenterCrop
from simmim.errors import UserError
from simmim.interruption import ignore_signals
from simmim.normalisation import IMAGENET_MEAN, IMAGENET_STD, Normalisation
from simmim.sizes import Size, as_pair


class ImageDataModule(pl.LightningDataModule):
    """Loaders over a training and a held-out source.

    Workers send uint8; `normalisation` is applied on the device. `batch_size` is per device.
    `num_workers` None means a worker for each core but one, at most 8. `train_transform` is None
    where nothing is trained.
    """

    def __init__(
        self,
        train: ImageSource,
        val: ImageSource,
        *,
        train_transform: Transform | None,
        val_transform: Transform,
        batch_size: int,
        num_workers: int | None = None,
        normalisation: Normalisation = Normalisation(),
        seed: int = 0,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__()
        check_loading(batch_size, num_workers)
        self.train = train
        self.val = val
        self.train_transform = train_transform
        self.val_transform = val_transform
        self.batch_size = batch_size
        self.num_workers = default_workers() if num_workers is None else num_workers
        self.normalisation = normalisation
        self.seed = seed
        self.on_error: OnError = on_error

    def require_batches(self, world_size: int) -> None:
        """Raises UserError where one global batch takes more images than there are."""
        if len(self.train) < self.batch_size * world_size:
            raise UserError(
                f"data.batch_size {self.batch_size} on {world_size} device(s) needs "
                f"{self.batch_size * world_size} training images and there are {len(self.train)}; "
                f"use data.batch_size={max(1, len(self.train) // world_size)} or less"
            )

    def require_classes(self) -> tuple[str, ...]:
        """Names of the labels; UserError where images have none or a class is never trained on."""
        if len(self.train.classes) < 2:
            raise UserError(
                f"the data has {len(self.train.classes)} classes; put the images into one folder a "
                "class, below data.root or below its train and val"
            )
        untrained = sorted(set(self.val.present_classes()) - set(self.train.present_classes()))
        if untrained:
            raise UserError(
                f"{len(untrained)} of the held-out classes have no training image "
                f"({', '.join(untrained[:5])}); add some, or remove them from val"
            )
        return self.train.classes

    def batches_per_epoch(self, world_size: int) -> int:
        """Training batches of each rank in an epoch."""
        return len(self.train) // (self.batch_size * world_size)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled, augmented batches; a resumed run goes on at the next one."""
        sampler = TrainSampler(
            len(self.train), self.batch_size, seed=self.seed, **self._rank_and_world_size()
        )
        if self.trainer is not None:
            # Workers ask for keys as soon as they start, before Lightning tells the epoch.
            accumulation = self.trainer.accumulate_grad_batches
            steps_per_epoch = -(-sampler.num_batches // accumulation)
            epoch, step = divmod(self.trainer.global_step, steps_per_epoch)
            sampler.set_epoch(epoch)
            sampler.skip_batches(step * accumulation)
        assert self.train_transform is not None
        images = TransformedImages(self.train, self.train_transform, self.seed, self.on_error)
        return self._loader(images, sampler)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Every held-out image once, in order."""
        sampler = EvaluationSampler(len(self.val), **self._rank_and_world_size())
        images = TransformedImages(self.val, self.val_transform, self.seed, self.on_error)
        return self._loader(images, sampler)

    def evaluation_dataloader(
        self, source: ImageSource, chosen: Sequence[int] | None = None
    ) -> DataLoader[Sample]:
        """Images of either source as validation sees them (`chosen`: these alone), to be read once.

        Leaves no worker behind, and draws from no generator that anything else draws from.
        """
        sampler = EvaluationSampler(len(source), chosen=chosen, **self._rank_and_world_size())
        images = TransformedImages(source, self.val_transform, self.seed, self.on_error)
        return self._loader(images, sampler, persistent=False, generator=torch.Generator())

    def _loader(
        self,
        images: TransformedImages,
        sampler: TrainSampler | EvaluationSampler,
        *,
        persistent: bool = True,
        generator: torch.Generator | None = None,
    ) -> DataLoader[Sample]:
        workers: dict[str, Any] = (
            {"persistent_workers": persistent, "prefetch_factor": 4} if self.num_workers else {}
        )
        return DataLoader(
            images,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=generator,
            worker_init_fn=start_worker,
            **workers,
        )

    def _rank_and_world_size(self) -> dict[str, Any]:
        if self.trainer is None:
            return {}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}


def start_worker(worker: int) -> None:
    """Leaves signals to the run: its next step needs what its workers have in hand."""
    ignore_signals()


def demo(
    *,
    image_size: Size,
    train_size: int,
    val_size: int,
    batch_size: int,
    train_transform: Transform | None,
    detail: float = 1.0,
    num_workers: int | None = None,
    seed: int = 0,
) -> ImageDataModule:
    """Pictures that simmim draws itself, with the texture of the ground as their label."""
    size = as_pair(image_size, "model.image_size")
    train, val = (
        DemoImages(split=split, size=count, image_size=size, seed=seed, detail=detail)
        for split, count in (("train", train_size), ("val", val_size))
    )
    return ImageDataModule(
        train,
        val,
        train_transform=train_transform,
        val_transform=CenterCrop(size),
        batch_size=batch_size,
        num_workers=num_workers,
        seed=seed,
    )


def imagefolder(
    *,
    root: str | Path | None,
    image_size: Size,
    batch_size: int,
    train_transform: Transform | None,
    val_ratio: float = 0.05,
    num_workers: int | None = None,
    on_error: OnError = "skip",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    seed: int = 0,
) -> ImageDataModule:
    """A folder of images; without `train_transform`, all that `held_out_folder` finds is held out.

    Raises:
        UserError: no folder given, or none that holds readable images.
    """
    if root is None:
        raise UserError("data=imagefolder needs a folder of images; set data.root=DIR")
    check_loading(batch_size, num_workers)  # before the folder is read
    if train_transform is None:
        held_out = held_out_folder(root)
        folders = FolderSplits(ImageFolder(held_out.root, (), held_out.classes), held_out)
    else:
        folders = split_folder(root, val_ratio)
    return ImageDataModule(
        folders.train,
        folders.val,
        train_transform=train_transform,
        val_transform=CenterCrop(image_size),
        batch_size=batch_size,
        num_workers=num_workers,
        normalisation=Normalisation(tuple(mean), tuple(std)),
        seed=seed,
        on_error=on_error,
    )


def check_loading(batch_size: int, num_workers: int | None) -> None:
    """Raises UserError for a batch of no image or fewer workers than none."""
    if batch_size < 1:
        raise UserError(f"data.batch_size {batch_size} is not positive; use 64")
    if num_workers is not None and num_workers < 0:
        raise UserError(f"data.num_workers {num_workers} is negative; use 0 for none")


def default_workers() -> int:
    """A worker for each core that this process may use but one, from 1 to 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(8, (cores or 2) - 1))
