"""Images of a Hugging Face dataset: by index if it is on a disk, else as a stream."""

import json
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Real
from torch import Tensor

from simmim.data.decoding.decode import open_encoded
from simmim.data.decoding.lazy_image import LazyImage
from simmim.data.sources.hugging_face_columns import (
    Columns,
    class_names,
    content,
    number_labels,
    require_datasets,
    undecoded,
    value_kind,
)
from simmim.data.sources.streams import Encoded, FirstImages
from simmim.data.split_names import part_of
from simmim.utils.console import say
from simmim.utils.errors import UnreadableImageError, UserError
from simmim.utils.rng import derive_seed

_BATCH = 16
# Files that save_to_disk writes beside a dataset, and beside the folders of several.
_STATE = "state.json"
_SPLITS = "dataset_dict.json"


class HuggingFaceImages:
    """The images of a `datasets.Dataset`, which is on a disk and has random access."""

    def __init__(self, dataset: Any, columns: Columns, classes: tuple[str, ...]) -> None:
        self.dataset = undecoded(dataset, columns.image)
        self.columns = columns
        self.classes = classes
        self._labels: list[int] | None = None
        if classes:
            self._labels = number_labels(self.dataset[columns.label][:], classes)

    def present_classes(self) -> tuple[str, ...]:
        """The classes that occur in these images."""
        labels = {label for label in self._labels or () if label >= 0}
        return tuple(sorted(self.classes[label] for label in labels))

    def unlabelled(self) -> list[int]:
        """Indices of the images without a label, if there are classes."""
        return [index for index, label in enumerate(self._labels or ()) if label < 0]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def load(self, index: int) -> tuple[Real[Tensor, "c h w"], int]:
        """Decodes one image; a UserError names it if it cannot be read."""
        picture, label = self.open(index)
        return picture.decode(), label

    def open(self, index: int) -> tuple[LazyImage, int]:
        """Like `load`, but with decoding deferred if possible."""
        data = self.read(index)
        label = -1 if self._labels is None else self._labels[index]
        return open_encoded(data, self.identifier(index), self.columns.channels), label

    def read(self, index: int) -> bytes:
        """The encoded file of one image; UnreadableImageError if the row has none."""
        image = self.dataset[index][self.columns.image]
        kind = value_kind(self.dataset.features[self.columns.image])
        return content(image, self.identifier(index), kind)

    @property
    def channels(self) -> int:
        """Channels of each image."""
        return self.columns.channels

    def identifier(self, index: int) -> str:
        """The name of the dataset, and the row."""
        return f"{self.columns.name}[{index}]"


class HuggingFaceStream:
    """The images of a `datasets.IterableDataset`, shuffled by it in a buffer, and by files if it can.

    Args:
        length: samples that count as an epoch.
        buffer: samples that its shuffle buffer holds, undecoded.
        splits_by_file: each reader gets its own files; else each reads all, and keeps its own rows.
    """

    def __init__(
        self,
        dataset: Any,
        columns: Columns,
        classes: tuple[str, ...],
        *,
        length: int,
        buffer: int,
        seed: int,
        splits_by_file: bool = True,
    ) -> None:
        self.dataset = undecoded(dataset, columns.image)
        self.columns = columns
        self.classes = classes
        self.channels = columns.channels
        self.buffer = buffer
        self.seed = seed
        self.splits_by_file = splits_by_file
        self._length = length

    def present_classes(self) -> tuple[str, ...]:
        """All classes, because a stream is not read to find out."""
        return self.classes

    def __len__(self) -> int:
        """Samples that count as an epoch."""
        return self._length

    def read_part(self, epoch: int, part: int, parts: int) -> Iterator[Encoded]:
        """The images of every `parts`-th file, or of every `parts`-th row if there are fewer files."""
        dataset = self.dataset
        is_split = self.splits_by_file and dataset.num_shards >= parts
        if is_split:
            # Another part in each epoch, so that a lane does not always read the same files.
            dataset = dataset.shard(parts, (part + epoch) % parts, contiguous=False)
        key = derive_seed(self.seed, "stream", epoch, part if is_split else 0)
        shuffled = dataset.shuffle(seed=key % 2**32, buffer_size=self.buffer)
        images = read_rows(shuffled, self.columns, self.classes)
        yield from images if is_split else islice(images, part, None, parts)


def load_saved(root: str | Path, train_split: str) -> dict[str, Any]:
    """The splits that `save_to_disk` wrote, together or each into a folder of its own in `root`.

    A dataset without splits becomes `train_split`. The format that a dataset was saved with is for
    its owner's program, and is removed.

    Raises:
        UserError: the folder holds none.
    """
    require_datasets()
    folder = Path(root).expanduser()
    try:
        if (folder / _SPLITS).exists():
            names = json.loads((folder / _SPLITS).read_text())["splits"]
        else:
            names = sorted(path.parent.name for path in folder.glob(f"*/{_STATE}"))
        if names and not (folder / _STATE).exists():
            return {name: load_split(folder / name) for name in names}
        return {train_split: load_split(folder)}
    except (OSError, ValueError) as error:
        raise UserError(
            f"data.root {root} is no dataset that save_to_disk wrote ({error}); "
            "use data=imagefolder for a folder of images, data.name for other datasets"
        ) from error


def load_split(folder: Path) -> Any:
    """One `datasets.Dataset` without its format, so that the format's library is not needed."""
    datasets = require_datasets()
    try:
        return datasets.load_from_disk(str(folder)).with_format(None)
    except ValueError as error:
        if "needs to be installed" not in str(error):
            raise
    files = json.loads((folder / _STATE).read_text())["_data_files"]
    parts = [datasets.Dataset.from_file(str(folder / file["filename"])) for file in files]
    return datasets.concatenate_datasets(parts)


def load_named(name: str, subset: str | None, streaming: bool) -> dict[str, Any]:
    """The splits of a dataset of the hub, or of a folder that `datasets.load_dataset` takes.

    Raises:
        UserError: the dataset cannot be loaded.
    """
    datasets = require_datasets()
    try:
        return dict(datasets.load_dataset(name, subset, streaming=streaming))
    except Exception as error:  # of as many types as there are formats
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"data.name={name} cannot be loaded ({reason}); check the name, data.subset and the network"
        ) from error


def index_splits(
    splits: Mapping[str, Any],
    train_split: str,
    val_split: str | None,
    columns: Columns,
    *,
    val_ratio: float,
    samples_per_epoch: int | None,
) -> tuple[HuggingFaceImages, HuggingFaceImages]:
    """The training images (`train_split` "": none) and held-out images of a dataset on a disk.

    Raises:
        UserError: splits or columns that do not exist, or a ratio that leaves a part empty.
    """
    if samples_per_epoch is not None:
        raise UserError(
            f"data.samples_per_epoch={samples_per_epoch} is for data.streaming=true; here an epoch is "
            "all images; use data.samples_per_epoch=null"
        )
    if val_split is not None:
        val = _find_split(splits, val_split, "data.val_split")
        classes = class_names(val, columns.label)
        train = val.select([])
        if train_split:
            train = _find_split(splits, train_split, "data.train_split")
            classes = _merge(class_names(train, columns.label), classes)
    else:
        whole = _find_split(splits, train_split, "data.train_split")
        if not 0 < val_ratio < 1 or len(whole) < 2:
            raise UserError(
                f"data.val_ratio {val_ratio} of {len(whole)} images leaves a part empty; "
                "use 0.05, or set data.val_split"
            )
        classes = class_names(whole, columns.label)
        count = min(max(1, round(val_ratio * len(whole))), len(whole) - 1)
        order = np.random.default_rng(0).permutation(len(whole))
        say(f"{count} of {len(whole)} images are held out (data.val_ratio)")
        val, train = (whole.select(np.sort(part)) for part in (order[:count], order[count:]))
    return HuggingFaceImages(train, columns, classes), HuggingFaceImages(val, columns, classes)


def stream_splits(
    splits: Mapping[str, Any],
    train_split: str,
    val_split: str | None,
    columns: Columns,
    *,
    val_size: int,
    buffer: int,
    samples_per_epoch: int | None,
    seed: int,
) -> tuple[HuggingFaceStream, FirstImages]:
    """The training stream (`train_split` "": none), and the first images of the held-out stream.

    Raises:
        UserError: splits or columns that do not exist, or an epoch of unknown length.
    """
    train = _find_split(splits, train_split or str(val_split), "data.train_split")
    known = train.info.splits and train.info.splits.get(train_split)
    length = samples_per_epoch or (known.num_examples if known else 0) or 0
    if val_split is not None:
        held_out = _find_split(splits, val_split, "data.val_split")
    else:
        held_out, train = train.take(val_size), train.skip(val_size)
        length = length if samples_per_epoch else length - val_size
        say(
            f"the first {val_size} images are held out (data.val_size), so each reader has to read all "
            "files; set data.val_split to hold out another split and share the files out"
        )
    if length < 1 and train_split:
        raise UserError(
            f"how many images {columns.name} holds is not known, or not more than data.val_size="
            f"{val_size}; set data.samples_per_epoch=N"
        )
    classes = class_names(train, columns.label)
    images = read_rows(undecoded(held_out, columns.image), columns, classes)
    val = FirstImages(images, val_size, classes, columns.channels)
    stream = HuggingFaceStream(
        train,
        columns,
        classes,
        length=length,
        buffer=buffer,
        seed=seed,
        # Given some of the files, the library would skip only some of the held-out images.
        splits_by_file=val_split is not None,
    )
    return stream, val


def read_rows(dataset: Any, columns: Columns, classes: tuple[str, ...]) -> Iterator[Encoded]:
    """The rows of a stream in order, undecoded."""
    kind = value_kind(dataset.features[columns.image])
    # Not by __iter__, which would distribute the rows to the workers a second time.
    for batch in dataset.iter(_BATCH):
        labels = [-1] * len(batch[columns.image])
        if classes:
            labels = number_labels(batch[columns.label], classes)
        for image, label in zip(batch[columns.image], labels, strict=True):
            try:
                data = content(image, columns.name, kind)
            except UnreadableImageError:
                data = b""  # no image: decoding it raises the error
            yield Encoded(data, f"{columns.name}, {_row_name(image, data)}", label)


def _row_name(image: Any, data: bytes) -> str:
    """A row's name, the same in every epoch and part: its file's path, or a digest of its content."""
    path = image.get("path") if isinstance(image, Mapping) else None
    return str(path) if path else f"image {blake2b(data, digest_size=8).hexdigest()}"


def _find_split(splits: Mapping[str, Any], split: str, option: str) -> Any:
    named = [name for name in splits if part_of(name) and part_of(name) == part_of(split)]
    if split not in splits and len(named) == 1:
        return splits[named[0]]
    if split not in splits:
        raise UserError(f"{option} {split} does not exist; use one of {', '.join(splits)}")
    return splits[split]


def _merge(classes: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    """The classes of both parts: in the first one's order if it has all of them, else sorted."""
    return classes if set(others) <= set(classes) else tuple(sorted({*classes, *others}))
