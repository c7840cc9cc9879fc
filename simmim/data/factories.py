"""One function for each kind of data, as named in `conf/data/*.yaml`."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import Unpack

from simmim.data.datamodule import ImageDataModule, check_loading
from simmim.data.dataset import ImageSource, Transform
from simmim.data.decoding.on_device import require_crop_alone
from simmim.data.samplers import Order
from simmim.data.sources.hugging_face import (
    index_splits,
    load_named,
    load_saved,
    stream_splits,
)
from simmim.data.sources.hugging_face_columns import Columns
from simmim.data.sources.image_folder import (
    FolderSplits,
    ImageFolder,
    held_out_folder,
    split_folder,
)
from simmim.data.sources.label_table import label_folders
from simmim.data.sources.shard_samples import image_keys
from simmim.data.sources.shard_stream import open_streams
from simmim.data.sources.shard_urls import find_shards, is_url, sort_roots, sort_shards
from simmim.data.sources.shards import open_shards
from simmim.data.sources.streams import ImageStream
from simmim.data.synthetic.dataset import DemoImages, Pictures
from simmim.data.transforms import CenterCrop, require_channels
from simmim.data.unreadable.policy import Reading, ReadingOptions
from simmim.utils.errors import UserError
from simmim.utils.normalization import IMAGENET_MEAN, IMAGENET_STD, Normalisation
from simmim.utils.sizes import Size, as_pair


class FileOptions(ReadingOptions, total=False):
    """The options of every kind of data that is read from files; `prepare` has their defaults."""

    image_size: Size
    batch_size: int
    train_transform: Transform | None
    num_workers: int | None
    mean: Sequence[float]
    std: Sequence[float]
    statistics: str | Path | None
    seed: int
    crop_ratio: float | None
    squash: bool | None


class Prepared(NamedTuple):
    """`FileOptions` after checks: what a data module needs beside its images."""

    train_transform: Transform | None
    val_transform: CenterCrop
    batch_size: int
    num_workers: int | None
    normalisation: Normalisation
    seed: int
    reading: Reading

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        return len(self.normalisation.mean)

    def module(
        self, train: ImageSource | ImageStream, val: ImageSource, order: Order | None = None
    ) -> ImageDataModule:
        """The data module of these images; `order` is the order of an epoch (None: a full shuffle)."""
        return ImageDataModule(train, val, order=order, **self._asdict())


def prepare(
    *,
    image_size: Size,
    batch_size: int,
    train_transform: Transform | None,
    num_workers: int | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    statistics: str | Path | None = None,
    seed: int = 0,
    crop_ratio: float | None = None,
    squash: bool | None = None,
    **reading: Unpack[ReadingOptions],
) -> Prepared:
    """Checks the options that all kinds of files have in common.

    Raises:
        UserError: an invalid value, or a transform that does not suit the channels or the decoder.
    """
    check_loading(batch_size, num_workers)
    val_transform = CenterCrop(image_size, crop_ratio, squash)
    options = Reading(**reading)
    normalisation = find_normalisation(mean, std, statistics)
    channels = len(normalisation.mean)
    require_channels(train_transform, channels)
    require_crop_alone(options.decode, train_transform, channels)
    return Prepared(
        train_transform, val_transform, batch_size, num_workers, normalisation, seed, options
    )


def demo(
    *,
    image_size: Size,
    train_size: int,
    val_size: int,
    batch_size: int,
    train_transform: Transform | None,
    detail: float = 1.0,
    pictures: Pictures = "textures",
    num_workers: int | None = None,
    seed: int = 0,
    crop_ratio: float | None = None,
    squash: bool | None = None,
) -> ImageDataModule:
    """Images that simmim draws itself, with the texture of the background as their label.

    `train_size` and `val_size` are numbers of images; `pictures` and `detail` are as in
    `DemoImages`. As for all kinds of data, `crop_ratio` and `squash` say how held-out images are
    shown (`CenterCrop`).
    """
    size = as_pair(image_size, "model.image_size")
    train, val = (
        DemoImages(
            split=split, size=count, image_size=size, seed=seed, detail=detail, pictures=pictures
        )
        for split, count in (("train", train_size), ("val", val_size))
    )
    return ImageDataModule(
        train,
        val,
        train_transform=train_transform,
        val_transform=CenterCrop(size, crop_ratio, squash),
        batch_size=batch_size,
        num_workers=num_workers,
        seed=seed,
    )


def imagefolder(
    *,
    root: str | Path | None,
    val_root: str | Path | None = None,
    val_ratio: float = 0.05,
    labels: str | Path | None = None,
    **options: Unpack[FileOptions],
) -> ImageDataModule:
    """A folder of images; without `train_transform`, all that `held_out_folder` finds are held out.

    The held-out images are those in `val_root` or, without it, in `val` (or `test`) beside `train`
    in `root`, in any case and spelling, or a fraction `val_ratio` if there are no such folders.
    `labels` is a CSV file whose first column names images and whose others are labels
    (`read_table`). `mean` and `std` have an entry for each channel, or come from the file
    `statistics`; `options` say what happens to images that cannot be read (`Reading`), as for all
    kinds of data.

    Raises:
        UserError: no folder is given, or it holds no readable images.
    """
    if root is None:
        raise UserError("data=imagefolder needs a folder of images; set data.root=DIR")
    prepared = prepare(**options)
    if prepared.train_transform is None:
        held_out = held_out_folder(root, prepared.channels, val_root)
        folders = FolderSplits(ImageFolder(held_out.root, (), held_out.classes), held_out)
    else:
        folders = split_folder(root, val_ratio, prepared.channels, val_root)
    if labels is None:
        return prepared.module(folders.train, folders.val)
    return prepared.module(*label_folders(folders, labels, root))


def webdataset(
    *,
    root: str | Sequence[str] | None,
    val_root: str | Sequence[str] | None = None,
    val_ratio: float = 0.05,
    val_size: int = 10000,
    samples_per_epoch: int | None = None,
    image_key: str | Sequence[str] | None = None,
    shuffle_buffer: int = 10000,
    **options: Unpack[FileOptions],
) -> ImageDataModule:
    """Tar shards: with random access on a disk, or streamed from URLs.

    The held-out images are those in `val_root` or, without it, a fraction `val_ratio` of the images
    or, if streamed, of the shards, of which at most `val_size` images are kept in memory. Without
    `train_transform`, all shards are held out. An epoch of a stream has `samples_per_epoch` images
    (None: the number in its dataset.json). `image_key` says which image of a sample with several is
    used (`shard_samples`). Shards come in random order; their images are shuffled in a buffer of
    `shuffle_buffer` images. `mean` and `std` are as in `imagefolder`.

    Raises:
        UserError: shards do not exist, are damaged (if `on_error` is `raise`), or hold no image.
    """
    if root is None:
        raise UserError("data=webdataset needs tar shards; set data.root='DIR/*.tar'")
    prepared = prepare(**options)
    require_positive(10000, shuffle_buffer=shuffle_buffer, val_size=val_size)
    root, val_root = sort_roots(root, val_root)
    shards = find_shards(root)
    val_shards = [] if val_root is None else find_shards(val_root, "data.val_root")
    if val_root is None:
        shards, val_shards = sort_shards(shards)
    if prepared.train_transform is None:
        shards, val_shards = [], val_shards or shards
    streamed = [name for name in (*shards, *val_shards) if is_url(name)]
    if streamed and len(streamed) < len(shards) + len(val_shards):
        raise UserError(
            f"{streamed[0]} is streamed and other shards are on a disk; copy it there, "
            "or name the others by file:// too"
        )
    shared: dict[str, Any] = {
        "val_ratio": val_ratio,
        "channels": prepared.channels,
        "on_error": prepared.reading.on_error,
        "samples_per_epoch": samples_per_epoch,
        "keys": image_keys(image_key),
    }
    train: ImageSource | ImageStream
    val: ImageSource
    order = None
    if streamed:
        train, val = open_streams(
            shards,
            val_shards,
            val_size=val_size,
            buffer=shuffle_buffer,
            seed=prepared.seed,
            **shared,
        )
    else:
        train, val = open_shards(shards, val_shards, **shared)
        order = train.order(shuffle_buffer)
    return prepared.module(train, val, order)


def hf(
    *,
    root: str | Path | None = None,
    name: str | None = None,
    subset: str | None = None,
    streaming: bool = False,
    image_column: str = "image",
    label_column: str | None = None,
    train_split: str = "train",
    val_split: str | None = None,
    val_ratio: float = 0.05,
    val_size: int = 10000,
    samples_per_epoch: int | None = None,
    shuffle_buffer: int = 1000,
    **options: Unpack[FileOptions],
) -> ImageDataModule:
    """A Hugging Face dataset: saved on disk (`root`), or by its name, downloaded or streamed.

    `root` is a folder that `save_to_disk` wrote; `name` and `subset` are arguments of
    `datasets.load_dataset`. The held-out images are those of `val_split` or, without it, a fraction
    `val_ratio` of `train_split`, or the first `val_size` images of a stream, kept in memory.
    Without `train_transform`, all images are held out. An epoch of a stream has `samples_per_epoch`
    images (None: the dataset's own number). Images and labels are in `image_column` and
    `label_column`; `mean` and `std` are as in `imagefolder`.

    Raises:
        UserError: there is no such dataset, or it lacks these splits or columns.
    """
    if (root is None) == (name is None):
        raise UserError(
            "data=hf needs data.root=DIR, a folder of save_to_disk, or data.name=NAME, and not both"
        )
    prepared = prepare(**options)
    require_positive(1000, shuffle_buffer=shuffle_buffer, val_size=val_size)
    if root is not None:
        if streaming:
            raise UserError("data.streaming=true is for data.name; a data.root is read at random")
        splits = load_saved(root, train_split)
    else:
        assert name is not None
        splits = load_named(name, subset, streaming)
    columns = Columns(image_column, label_column, prepared.channels, str(root or name))
    if prepared.train_transform is None:
        train_split, val_split = "", val_split or train_split
    train: ImageSource | ImageStream
    val: ImageSource
    if streaming:
        train, val = stream_splits(
            splits,
            train_split,
            val_split,
            columns,
            val_size=val_size,
            buffer=shuffle_buffer,
            seed=prepared.seed,
            samples_per_epoch=samples_per_epoch,
        )
    else:
        train, val = index_splits(
            splits,
            train_split,
            val_split,
            columns,
            val_ratio=val_ratio,
            samples_per_epoch=samples_per_epoch,
        )
    return prepared.module(train, val)


def require_positive(default: int, **options: int) -> None:
    """Raises UserError for an option of `data` that is not positive."""
    for option, value in options.items():
        if value < 1:
            raise UserError(f"data.{option} {value} is not positive; use {default}")


def find_normalisation(
    mean: Sequence[float], std: Sequence[float], statistics: str | Path | None
) -> Normalisation:
    """`mean` and `std`, or those that scripts/channel_statistics.py wrote to the file `statistics`.

    Raises:
        UserError: the file holds none, the lists differ in length, or a deviation is not positive.
    """
    if statistics is not None:
        try:
            content = json.loads(Path(statistics).expanduser().read_text())
            mean, std = map(float_list, (content["mean"], content["std"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"data.statistics {statistics} holds no mean and std "
                f"({str(error) or type(error).__name__}); write it with "
                "python scripts/channel_statistics.py DIR --out FILE"
            ) from error
    if len(mean) != len(std) or not mean:
        raise UserError(
            f"data.mean has {len(mean)} entries and data.std {len(std)}; give one a channel in both"
        )
    if not all(value > 0 and math.isfinite(value) for value in std):
        raise UserError(
            f"data.std {list(std)} is not positive everywhere; leave constant bands out"
        )
    return Normalisation(tuple(mean), tuple(std))


def float_list(values: Sequence[float]) -> list[float]:
    """Numbers as floats; TypeError or ValueError for anything else."""
    return [float(value) for value in values]
