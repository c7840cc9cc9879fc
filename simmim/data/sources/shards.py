"""Tar shards on a disk, with access to their images by index."""

import logging
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Real, Shaped
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from simmim.data.decoding.decode import open_encoded
from simmim.data.decoding.lazy_image import LazyImage
from simmim.data.samplers import Order, shuffle_nearby
from simmim.data.sources.shard_samples import describe_left_out
from simmim.data.sources.shard_urls import DESCRIPTION, describe
from simmim.data.sources.tar_index import ShardIndex, index_shard, require_tar
from simmim.data.unreadable.policy import OnError
from simmim.data.unreadable.retry import unreadable
from simmim.utils.errors import UserError
from simmim.utils.rng import random_bits

log = logging.getLogger(__name__)

_MOST_OPEN_FILES = 128
_NONE = np.zeros(0, np.int64)


class Shards(NamedTuple):
    """Shards with their indexes, and the names of the classes."""

    paths: list[Path]
    indexes: list[ShardIndex]
    classes: tuple[str, ...]


class ShardImages:
    """Images of tar shards, in the order of the shards; `kept` are the indices by shard (None: all).

    Attributes:
        counts: number of these images in each shard.
        damaged: shards that end early, and why.
    """

    def __init__(
        self, shards: Shards, kept: Sequence[Int[np.ndarray, "_"]] | None = None, channels: int = 3
    ) -> None:
        if kept is None:
            kept = [np.arange(len(index)) for index in shards.indexes]
        self.paths = shards.paths
        self.classes = shards.classes
        self.channels = channels
        self.counts = [len(chosen) for chosen in kept]
        self.damaged = {
            str(path): index.damage
            for path, index in zip(shards.paths, shards.indexes, strict=True)
            if index.damage
        }
        parts = list(zip(shards.indexes, kept, strict=True))
        self._last = np.cumsum(self.counts)
        self._offsets = np.concatenate([_NONE, *(index.offsets[some] for index, some in parts)])
        self._sizes = np.concatenate([_NONE, *(index.sizes[some] for index, some in parts)])
        self._labels = np.concatenate(
            [_NONE, *(_number(index.labels[some], shards.classes) for index, some in parts)]
        )
        self._names = [index.names[some] for index, some in parts]
        # Files that this process has open, the most recently used at the end.
        self._files: OrderedDict[int, int] = OrderedDict()

    def present_classes(self) -> tuple[str, ...]:
        """The classes that occur in these images."""
        return tuple(sorted(self.classes[label] for label in np.unique(self._labels) if label >= 0))

    def __len__(self) -> int:
        """Number of images."""
        return len(self._offsets)

    def load(self, index: int) -> tuple[Real[Tensor, "c h w"], int]:
        """Reads and decodes one image; a UserError names it if it cannot be read."""
        picture, label = self.open(index)
        return picture.decode(), label

    def open(self, index: int) -> tuple[LazyImage, int]:
        """Like `load`, but with decoding deferred if possible."""
        picture = open_encoded(self.read(index), self.identifier(index), self.channels)
        return picture, int(self._labels[index])

    def read(self, index: int) -> bytes:
        """The encoded file of one image; UnreadableImageError if it cannot be read."""
        shard, size = self._shard(index), int(self._sizes[index])
        try:
            data = os.pread(self._file(shard), size, int(self._offsets[index]))
        except OSError as error:
            if shard in self._files:  # it may be stale; the next attempt opens it again
                os.close(self._files.pop(shard))
            raise unreadable(self.identifier(index), error) from error
        if len(data) != size:
            raise unreadable(self.identifier(index), "its shard has become shorter")
        return data

    def identifier(self, index: int) -> str:
        """The shard's path and the name within it."""
        shard = self._shard(index)
        name = self._names[shard][index - (self._last[shard] - self.counts[shard])]
        return f"{self.paths[shard]}/{os.fsdecode(name)}"

    def order(self, buffer: int) -> Order:
        """Shards in a random order, their images shuffled in a buffer of `buffer` images."""
        return partial(shuffle_nearby, self.counts, buffer)

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._last, index, side="right"))

    def _file(self, shard: int) -> int:
        """The shard's open file; if too many are open, closes the least recently used."""
        if shard not in self._files:
            self._files[shard] = os.open(self.paths[shard], os.O_RDONLY)
            if len(self._files) > _MOST_OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(shard)
        return self._files[shard]

    def __getstate__(self) -> dict[str, Any]:
        """The state without open files, which belong to this process."""
        return self.__dict__ | {"_files": OrderedDict()}


def open_shards(
    paths: Sequence[str],
    val_paths: Sequence[str],
    *,
    val_ratio: float,
    channels: int,
    on_error: OnError,
    samples_per_epoch: int | None,
    keys: Sequence[str] = (),
) -> tuple[ShardImages, ShardImages]:
    """The training and held-out images: all of `val_paths`, or a fraction `val_ratio` of `paths`.

    Raises:
        UserError: shards are damaged (if `on_error` is `raise`), hold no image, or have labels that
            are not classes; or `samples_per_epoch` is set, though an epoch is all images.
    """
    if samples_per_epoch is not None:
        raise UserError(
            f"data.samples_per_epoch={samples_per_epoch} is for streamed shards and these are on "
            "a disk, where an epoch is all images; use data.samples_per_epoch=null"
        )
    # Absolute, so that lists of images hold for any working directory.
    everything = [Path(path).absolute() for path in (*paths, *val_paths)]
    indexes = index_shards(everything, on_error, keys)
    classes = name_classes(indexes, everything[0].parent)
    if val_paths:
        require_same_classes(everything[0].parent, everything[-1].parent)
    count = len(paths)
    train = Shards(everything[:count], indexes[:count], classes)
    val = Shards(everything[count:], indexes[count:], classes)
    if not val_paths:
        return split_shards(train, val_ratio, channels)
    return ShardImages(train, channels=channels), ShardImages(val, channels=channels)


def index_shards(
    paths: Sequence[Path], on_error: OnError, keys: Sequence[str] = ()
) -> list[ShardIndex]:
    """Indexes of shards on a disk; logs which are damaged, and which images of samples are left out.

    `keys` are the patterns of `data.image_key`.

    Raises:
        UserError: a shard is compressed, or damaged (if `on_error` is `raise`), or none holds an
            image.
    """
    try:
        for path in paths:
            require_tar(path)
        with ThreadPoolExecutor(8) as threads:
            indexes = list(threads.map(partial(index_shard, keys=keys), paths))
    except OSError as error:
        raise UserError(f"a shard cannot be opened ({error}); check its permissions") from error
    _say(log.info, f"{len(paths)} shards hold {sum(map(len, indexes))} images")
    expected = describe(paths[0].parent).get("shards", {})
    damaged = 0
    for path, index in zip(paths, indexes, strict=True):
        if not index.damage:
            continue
        damaged += 1
        of = f" of {expected[path.name]}" if path.name in expected else ""
        what = f"{path} is damaged after {len(index)}{of} images ({index.damage})"
        if on_error == "raise":
            raise UserError(f"{what}; restore it, or use data.on_error=skip")
        _say(log.warning, f"skipped: the rest of {what}")
    if damaged:
        _say(log.warning, f"skipped: the rest of {damaged} of {len(paths)} shards")
    left_out = {
        ending for index in indexes if index.left_out for ending in index.left_out.split(";")
    }
    if not any(map(len, indexes)):
        others = f" that data.image_key chooses; they have {', '.join(sorted(left_out))}"
        raise UserError(
            f"{paths[0]} and {len(paths) - 1} other shards hold no image{others if left_out else ''}"
        )
    if left_out:
        _say(log.info, describe_left_out(left_out))
    return indexes


def name_classes(indexes: Sequence[ShardIndex], folder: Path) -> tuple[str, ...]:
    """The classes' names, in the order of their labels; empty if an image has no label.

    Labels that are numbers are indices in `classes` of the folder's dataset.json; without it, they
    are the names.
    """
    found = {label for index in indexes for label in np.unique(index.labels).tolist()}
    if b"" in found:
        return ()
    texts = sorted(os.fsdecode(label) for label in found)
    described = tuple(describe(folder).get("classes", ()))
    if not all(text.isascii() and text.isdecimal() for text in texts):
        return described if set(texts) <= set(described) else tuple(texts)
    highest = max(map(int, texts))
    if described and highest >= len(described):
        raise UserError(
            f"{folder / DESCRIPTION} names {len(described)} classes and a label is {highest}; "
            "correct the file, or remove it"
        )
    # A label far beyond the number of images is not the index of a class.
    if highest >= max(100_000, sum(map(len, indexes))):
        raise UserError(f"a label in {folder} is {highest}, which is no number of a class")
    return described or tuple(map(str, range(highest + 1)))


def require_same_classes(folder: Path, val_folder: Path) -> None:
    """Raises UserError if a number means different classes in training and held-out shards."""
    one, other = (describe(place).get("classes") for place in (folder, val_folder))
    if one and other and one != other:
        raise UserError(
            f"{folder / DESCRIPTION} and {val_folder / DESCRIPTION} name different classes, and labels "
            "are places among them; make the shards of folders with the same classes"
        )


def split_shards(
    shards: Shards, val_ratio: float, channels: int
) -> tuple[ShardImages, ShardImages]:
    """Holds out a fraction of the images, chosen only by their shards' names and their indices.

    Raises:
        UserError: the ratio is not between 0 and 1, or there is only one image.
    """
    total = sum(map(len, shards.indexes))
    if not 0 < val_ratio < 1:
        raise UserError(
            f"data.val_ratio {val_ratio} is not between 0 and 1 (both excluded); use 0.05, "
            "or name held-out shards by data.val_root"
        )
    if total < 2:
        raise UserError("there is one image, none is left to validate on; add more")
    draws = torch.cat(
        [
            random_bits(zlib.crc32(os.fsencode(path.name)), torch.arange(len(index)))
            for path, index in zip(shards.paths, shards.indexes, strict=True)
        ]
    ).numpy()
    count = min(max(1, round(val_ratio * total)), total - 1)
    is_held_out = np.zeros(total, bool)
    is_held_out[np.argsort(draws, kind="stable")[:count]] = True
    parts = np.split(is_held_out, np.cumsum([len(index) for index in shards.indexes])[:-1])
    _say(log.info, f"{count} of {total} images are held out, from all shards (data.val_ratio)")
    return (
        ShardImages(shards, [np.flatnonzero(~part) for part in parts], channels),
        ShardImages(shards, [np.flatnonzero(part) for part in parts], channels),
    )


@rank_zero_only
def _say(write: Callable[[str], None], message: str) -> None:
    """Logs a message, on rank 0 only."""
    write(message)


def _number(labels: Shaped[np.ndarray, " n"], classes: tuple[str, ...]) -> Int[np.ndarray, " n"]:
    """Labels as indices of `classes`; all -1 without classes."""
    if not classes:
        return np.full(len(labels), -1, np.int64)
    places = {os.fsencode(name): place for place, name in enumerate(classes)}
    unique, inverse = np.unique(labels, return_inverse=True)
    numbers = [places[label] if label in places else int(label) for label in unique.tolist()]
    return np.array(numbers, np.int64)[inverse]
