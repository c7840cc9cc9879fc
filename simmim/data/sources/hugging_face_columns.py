"""The columns of a Hugging Face dataset: which hold images and labels, and what their values are."""

from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simmim.data.unreadable.retry import unreadable
from simmim.utils.console import say
from simmim.utils.errors import UserError


class Columns(NamedTuple):
    """Where a dataset's images and labels are, the images' channels, and the dataset's name."""

    image: str
    label: str | None
    channels: int
    name: str


def undecoded(dataset: Any, image_column: str) -> Any:
    """The dataset with its images encoded; UserError if the column does not hold images.

    The dataset's format is removed: it may hide columns, or convert images.
    """
    datasets = require_datasets()
    dataset = dataset.with_format(None)
    features = dataset.features or {}
    if image_column not in features:
        raise UserError(
            f"data.image_column {image_column} does not exist; use one of {', '.join(features)}"
        )
    feature = features[image_column]
    encoded = datasets.Image(decode=False)
    if isinstance(feature, datasets.Image):
        dataset = dataset.cast_column(image_column, encoded)
    elif isinstance(getattr(feature, "feature", None), datasets.Image):
        say(f"of several images in a row of {image_column} the first is taken")
        dataset = dataset.cast_column(image_column, datasets.List(encoded))
    elif not _holds_files(feature) and value_kind(feature) is None:
        raise UserError(
            f"data.image_column {image_column} holds no images but {feature}; use a column of type "
            "Image, of files as bytes, of their paths, or of arrays"
        )
    return dataset.select_columns(
        [name for name, kind in features.items() if name == image_column or _is_label(kind)]
    )


def _holds_files(feature: Any) -> bool:
    """Whether a column holds files as bytes, their paths, or both as the library's own images do."""
    if isinstance(feature, Mapping):
        return "bytes" in feature or "path" in feature
    dtype = getattr(feature, "dtype", None)
    return dtype in ("binary", "large_binary", "string", "large_string")


def value_kind(feature: Any) -> str | None:
    """The dtype of a column of arrays (or of numbers in two or three nested lists); None for others."""
    if hasattr(feature, "shape"):
        return str(feature.dtype)
    depth = 0
    while hasattr(feature, "feature"):
        feature, depth = feature.feature, depth + 1
    dtype = str(getattr(feature, "dtype", ""))
    is_number = dtype.startswith(("int", "uint", "float"))
    return dtype if depth in (2, 3) and is_number else None


def class_names(dataset: Any, label_column: str | None) -> tuple[str, ...]:
    """The dataset's own names of its labels; else its distinct values, if it is on a disk.

    Raises:
        UserError: the column does not exist, or holds neither names nor numbers.
    """
    if label_column is None:
        return ()
    features = dataset.features or {}
    if label_column not in features:
        raise UserError(
            f"data.label_column {label_column} does not exist; use one of {', '.join(features)}, "
            "or null for none"
        )
    feature = features[label_column]
    if hasattr(feature, "names"):
        return tuple(feature.names)
    if not _is_label(feature):
        raise UserError(f"data.label_column {label_column} holds no labels but {feature}")
    if not hasattr(dataset, "unique"):
        raise UserError(
            f"data.label_column {label_column} of a stream has no names; "
            "use data.label_column=null, or data.streaming=false"
        )
    values = [value for value in dataset.unique(label_column) if value is not None]
    if feature.dtype in ("string", "large_string"):
        return tuple(sorted(values))
    highest = max(values, default=-1)
    if highest >= max(100_000, len(dataset)):
        raise UserError(f"data.label_column {label_column} holds {highest}, no number of a class")
    return tuple(map(str, range(highest + 1)))


def number_labels(values: Iterable[int | str | None], classes: tuple[str, ...]) -> list[int]:
    """Labels as indices of `classes`: numbers unchanged, names by their index; -1 for others."""
    places: dict[int | str | None, int] = {name: place for place, name in enumerate(classes)}
    places |= {place: place for place in range(len(classes))}
    return [places.get(value, -1) for value in values]


def content(image: Any, name: str, kind: str | None = None) -> bytes:
    """An image's encoded file, from the dataset or from a path in it.

    An array with values of this `kind` becomes a `.npy` file; of several images, the first is used.
    """
    if isinstance(image, bytes):
        return image
    try:
        if kind is not None and image is not None:
            file = BytesIO()
            np.save(file, np.asarray(image, kind), allow_pickle=False)
            return file.getvalue()
        if isinstance(image, list):
            image = image[0]
        if isinstance(image, str):
            return Path(image).expanduser().read_bytes()
        data = image.get("bytes")
        return Path(image["path"]).read_bytes() if data is None else data
    except OSError as error:
        raise unreadable(name, error) from error
    except (TypeError, KeyError, AttributeError, IndexError, ValueError) as error:
        raise unreadable(name, "its row holds no image") from error


def _is_label(feature: Any) -> bool:
    dtype = str(getattr(feature, "dtype", ""))
    return dtype in ("string", "large_string", "bool") or dtype.startswith(("int", "uint"))


def require_datasets() -> Any:
    """The `datasets` library; UserError if it is not installed."""
    try:
        import datasets
    except ImportError:
        raise UserError('data=hf needs the datasets library; pip install "simmim[hf]"') from None
    return datasets
