"""The DataLoaders of a run, which make batches from sources and streams."""

import os
from collections.abc import Sequence
from functools import partial
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Int
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader

from simmim.data.dataset import ImageSource, Sample, Transform, TransformedImages
from simmim.data.decoding.on_device import UndecodedImages, UndecodedLoader, pack, require_decoder
from simmim.data.host_resources import (
    PREFETCH,
    cores_of_rank,
    default_workers,
    fit_loading,
    launched_ranks,
    shared_bytes,
)
from simmim.data.loader import TimedLoader, describe_wait
from simmim.data.missing_labels import keep_labelled, require_labels
from simmim.data.samplers import EvaluationSampler, Order, TrainSampler, in_turn
from simmim.data.sources.fingerprint import describe_names, describe_source
from simmim.data.sources.image_folder import ImageFolder
from simmim.data.sources.streams import ImageStream, StreamedImages
from simmim.data.split_names import part_of
from simmim.data.transforms import CenterCrop, CropFirst
from simmim.data.unreadable.policy import Candidate, Reading
from simmim.data.unreadable.skipped_list import SKIPPED, require_named
from simmim.utils.console import say, warn
from simmim.utils.errors import UnreadableImageError, UserError
from simmim.utils.failure_messages import CANNOT_HAND_OVER, SHARED_MEMORY, SharedMemory
from simmim.utils.held_out_crop import HeldOutCrop
from simmim.utils.normalization import Normalisation
from simmim.utils.signals import ignore_signals

# How many held-out images are tried; the first readable one gives the dtype of all images.
_MOST_TRIED = 100


class ImageDataModule(pl.LightningDataModule):
    """Loaders over a training source or stream (`train`), and a held-out source (`val`).

    Workers send images unnormalised; `normalisation` is applied on the device. `batch_size` is per
    device. `num_workers` None means one worker fewer than a rank's share of cores, at most 8.
    `train_transform` is None if nothing is trained, `order` is None for a full shuffle; `reading`
    says what happens to images that cannot be read. The samples of a source do not depend on the
    number of workers; a stream is read in as many lanes as there are workers.

    Attributes:
        stop_signals: names of the signals that the run handles; its workers ignore them.

    Raises:
        UserError: an empty batch, a list that excludes no image, or a mean above 1 for 8-bit
            images.
    """

    def __init__(
        self,
        train: ImageSource | ImageStream,
        val: ImageSource,
        *,
        train_transform: Transform | None,
        val_transform: Transform,
        batch_size: int,
        num_workers: int | None = None,
        normalisation: Normalisation = Normalisation(),
        seed: int = 0,
        reading: Reading = Reading(),
        order: Order | None = None,
    ) -> None:
        super().__init__()
        check_loading(batch_size, num_workers)
        self.train = train
        self.val = val
        self.train_transform = train_transform
        self.val_transform = val_transform
        self.batch_size = batch_size
        self.num_workers = default_workers(launched_ranks()) if num_workers is None else num_workers
        self._asked_workers = num_workers
        self._prefetch: int | None = None
        self.normalisation = normalisation
        self.seed = seed
        self.tolerance = reading.tolerance(len(train) + len(val))
        self.decode = reading.decode
        self.order = order
        self.stop_signals: Sequence[str] = ()
        self._require_exclusion(reading.exclude)
        self.tolerance.value_type = self._find_value_type()
        if self.tolerance.value_type == torch.uint8 and max(normalisation.mean) > 1:
            raise UserError(
                f"data.mean {list(normalisation.mean)} is above 1, and white is 1 where images are of "
                "8 bits; divide data.mean and data.std by 255"
            )

    def _require_exclusion(self, path: str | None) -> None:
        """Raises UserError (warns if nothing is trained) for a list that excludes no image."""
        if not self.tolerance.excluded or isinstance(self.train, ImageStream):
            return
        sources = (self.train, self.val)
        names = (source.identifier(index) for source in sources for index in range(len(source)))
        try:
            require_named(path, self.tolerance.excluded, names)
        except UserError as error:
            if len(self.train):
                raise
            warn(str(error))  # it may list training images only

    def _find_value_type(self) -> torch.dtype | None:
        """The dtype of the first held-out image that can be read."""
        candidates = (
            Candidate(self.val.identifier(index), partial(self.val.load, index))
            for index in range(min(len(self.val), _MOST_TRIED))
        )
        for candidate in candidates:
            if candidate.name in self.tolerance.excluded:
                continue
            try:
                return self.tolerance.read(candidate)[0].dtype
            except UnreadableImageError:
                continue  # reported later, when it is needed
        return None

    def list_skipped(self, folder: Path, *, goes_on: bool) -> None:
        """Lists unreadable images in `folder`; unless the run `goes_on`, removes an earlier list."""
        path = folder / SKIPPED
        if not goes_on and getattr(rank_zero_only, "rank", 0) == 0:
            path.unlink(missing_ok=True)
        self.tolerance.skipped.path = path

    def held_out_crop(self) -> HeldOutCrop | None:
        """How held-out images are cropped; None if not by `CenterCrop`."""
        crop = self.val_transform
        if not isinstance(crop, CenterCrop):
            return None
        return {"crop_ratio": crop.crop_ratio, "squash": crop.squash}

    def describe_content(self) -> dict[str, str]:
        """What identifies these images, wherever they are stored: their number, names and classes."""
        described = {
            "training images": f"{len(self.train)} in an epoch"
            if isinstance(self.train, ImageStream)
            else describe_source(self.train),
            "held-out images": describe_source(self.val),
        }
        if self.tolerance.excluded:
            described["excluded images"] = describe_names(sorted(self.tolerance.excluded))
        return described

    def report_skipped(self) -> int:
        """Logs how many images could not be read, if any, and returns the number."""
        skipped = self.tolerance.skipped
        count = skipped.count()
        if count:
            say(f"{count:,} of {skipped.of:,} images could not be read: see {skipped.path}")
        return count

    def require_steps(self, world_size: int, accumulation: int) -> None:
        """Raises UserError if one step takes more images than there are."""
        if self.steps_per_epoch(world_size, accumulation):
            return
        devices = f"on {world_size} device(s)"
        if accumulation > 1:
            devices += f" with trainer.accumulate_grad_batches={accumulation}"
        raise UserError(
            f"data.batch_size {self.batch_size} {devices} needs "
            f"{self.batch_size * world_size * accumulation} training images and there are "
            f"{len(self.train)}; use data.batch_size="
            f"{max(1, len(self.train) // (world_size * accumulation))} or less"
        )

    def require_classes(self) -> tuple[str, ...]:
        """Names of the classes; UserError if an image has no label or a class no training image."""
        classes = self.train.classes
        if len(classes) < 2:
            raise UserError(
                f"the data has {len(classes)} classes{self._describe_classes()}; put the images into "
                "one folder a class, below data.root or below its train and val, or name a "
                "data.label_column"
            )
        if all(part_of(name) for name in classes):
            raise UserError(
                f"the classes would be {', '.join(classes)}, the parts of a data set; call "
                "the one to validate on val, beside train, or set data.root to one of them"
            )
        require_labels(self.val, "held-out")
        if not isinstance(self.train, ImageStream):
            require_labels(self.train, "training")
        untrained = sorted(set(self.val.present_classes()) - set(self.train.present_classes()))
        if untrained:
            raise UserError(
                f"{len(untrained)} of the held-out classes have no training image "
                f"({', '.join(untrained[:5])}); add some, or remove them from val"
            )
        return self.train.classes

    def keep_labelled(self) -> None:
        """Leaves out images that are outside of the class folders, with a warning."""
        if not isinstance(self.train, ImageStream):
            self.train = keep_labelled(self.train)
        self.val = keep_labelled(self.val)

    def _describe_classes(self) -> str:
        """What there is instead of classes: a single one, or images outside of any folder."""
        if self.train.classes:
            return f" ({self.train.classes[0]})"
        for part in (self.train, self.val):
            if isinstance(part, ImageFolder) and (loose := part.loose()):
                return f" ({part.identifier(loose[0])} and {len(loose) - 1} more lie in no folder)"
        return ""

    def require_random_access(self) -> ImageSource:
        """The training source; UserError if it is a stream, which has no random access."""
        if isinstance(self.train, ImageStream):
            raise UserError(
                "the training images are streamed and cannot be chosen one by one, as neighbours and "
                "linear classifiers need; use shards or a dataset on a disk"
            )
        return self.train

    def identify(self, sample_index: Int[Tensor, " b"], epoch: int) -> list[str]:
        """Readable names of training images, from the `sample_index` of their samples."""
        return [
            "a repeat, or one that stands in for an unreadable image"
            if index < 0
            else f"place {index} of the stream in epoch {epoch}"
            if isinstance(self.train, ImageStream)
            else self.train.identifier(index)
            for index in sample_index.tolist()
        ]

    def steps_per_epoch(self, world_size: int, accumulation: int) -> int:
        """Optimiser steps in an epoch, each of `accumulation` batches of every device."""
        return len(self.train) // (self.batch_size * world_size * accumulation)

    def describe_wait(self, share: float) -> str:
        """One line on the share of a run's time that it waited for data, and what may help."""
        return describe_wait(
            share, num_workers=self.num_workers, most_workers=cores_of_rank(self._ranks())
        )

    def share_node(self, ranks: int, loaders: int = 1) -> None:
        """Sets the numbers of workers and prefetched batches for this machine's cores and memory.

        `ranks` is the number of ranks that share the cores and the shared memory, `loaders` the
        number of loaders of each rank that prefetch at the same time. If this is not called, the
        first loader assumes one.

        Raises:
            UserError: the requested workers do not fit into shared memory.
        """
        kind = self.tolerance.value_type or torch.uint8
        seen = self.val_transform(torch.zeros(len(self.normalisation.mean), 64, 64, dtype=kind))
        # The size of files that the device decodes is not known, only that they are smaller.
        image_bytes = seen.nbytes if self.decode == "workers" else 0
        batch_bytes = shared_bytes(self.batch_size, image_bytes)
        memory = SharedMemory.find()
        workers = self._asked_workers
        loading = fit_loading(workers, batch_bytes, memory, ranks=ranks, loaders=loaders)
        wanted = default_workers(ranks) if workers is None else workers
        if memory is not None and loading != (wanted, PREFETCH):
            warn(
                f"{loading.num_workers} loader workers, each with {loading.prefetch} batches ready, in "
                f"place of {wanted} with {PREFETCH}: {SHARED_MEMORY} has no room for more "
                f"({memory.describe()}; docker run --shm-size=8g, or --ipc=host)"
            )
        self.num_workers, self._prefetch = loading

    def train_dataloader(self) -> DataLoader[Sample] | UndecodedLoader:
        """Shuffled, augmented batches; a resumed run continues with the next one."""
        self._choose_loading()
        place = self._rank_and_world_size()
        length = len(self.train)
        is_stream = isinstance(self.train, ImageStream)
        order = partial(in_turn, length) if is_stream else self.order
        accumulation = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        sampler = TrainSampler(
            length,
            self.batch_size,
            seed=self.seed,
            order=order,
            accumulation=accumulation,
            **place,
        )
        if self.trainer is not None:
            # Workers request keys as soon as they start, before Lightning sets the epoch.
            epoch, step = divmod(self.trainer.global_step, sampler.steps_per_epoch)
            sampler.set_epoch(epoch)
            sampler.skip_batches(step * accumulation)
        assert self.train_transform is not None
        images: TransformedImages | StreamedImages
        if isinstance(self.train, ImageStream):
            images = StreamedImages(
                self.train,
                self.train_transform,
                self.seed,
                batch_size=self.batch_size,
                lanes=max(1, self.num_workers),
                tolerance=self.tolerance,
                **place,
            )
        else:
            images = TransformedImages(self.train, self.train_transform, self.seed, self.tolerance)
        if self.decode == "workers":
            return self._loader(images, sampler)
        require_decoder(self._device())
        assert isinstance(self.train_transform, CropFirst)
        return self._loader(UndecodedImages(images, self.train_transform), sampler)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Every held-out image once, in order."""
        sampler = EvaluationSampler(len(self.val), **self._rank_and_world_size())
        images = TransformedImages(self.val, self.val_transform, self.seed, self.tolerance)
        return self._loader(images, sampler)

    def evaluation_dataloader(
        self, source: ImageSource, chosen: Sequence[int] | None = None
    ) -> DataLoader[Sample]:
        """Images of a `source` as validation sees them (`chosen`: only these), to be read once.

        Its workers are not persistent, and it has a random generator of its own.
        """
        sampler = EvaluationSampler(len(source), chosen=chosen, **self._rank_and_world_size())
        images = TransformedImages(source, self.val_transform, self.seed, self.tolerance)
        return self._loader(images, sampler, persistent=False, generator=torch.Generator())

    def _loader(
        self,
        images: TransformedImages | StreamedImages | UndecodedImages,
        sampler: TrainSampler | EvaluationSampler,
        *,
        persistent: bool = True,
        generator: torch.Generator | None = None,
    ) -> DataLoader[Any]:
        self._choose_loading()
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "sampler": sampler,
            "num_workers": self.num_workers,
            "pin_memory": self._device().type == "cuda",
            "generator": generator,
            "worker_init_fn": partial(start_worker, self.stop_signals),
        }
        if self.num_workers:
            options |= {"persistent_workers": persistent, "prefetch_factor": self._prefetch}
        if isinstance(images, UndecodedImages):
            return UndecodedLoader(images, collate_fn=pack, **options)
        return TimedLoader(images, **options)

    def _choose_loading(self) -> None:
        if self._prefetch is None:
            self.share_node(self._ranks())

    def _ranks(self) -> int:
        """Number of the run's ranks on this machine."""
        return launched_ranks() if self.trainer is None else self.trainer.num_devices

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _rank_and_world_size(self) -> dict[str, Any]:
        if self.trainer is None:
            return {}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}


def start_worker(stop_signals: Sequence[str], worker: int) -> None:
    """Makes a loader worker ignore signals: the run's next step still needs its batches.

    If a batch cannot be handed over, the worker exits, and so does the run, which would wait
    forever.
    """
    ignore_signals(stop_signals)
    Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]


def _end_worker(error: Exception, batch: object) -> None:
    """Replaces multiprocessing's handler, which prints the error and drops the batch."""
    os._exit(CANNOT_HAND_OVER)


def check_loading(batch_size: int, num_workers: int | None) -> None:
    """Raises UserError for an empty batch or a negative number of workers."""
    if batch_size < 1:
        raise UserError(f"data.batch_size {batch_size} is not positive; use 64")
    if num_workers is not None and num_workers < 0:
        raise UserError(f"data.num_workers {num_workers} is negative; use 0 for none")
