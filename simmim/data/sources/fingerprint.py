"""Fingerprints of image sources, independent of their location, which a resumed run compares."""

import hashlib
from collections.abc import Sequence
from itertools import takewhile

from simmim.data.dataset import ImageSource
from simmim.data.sources.label_table import ClassedImages, TargetImages

# Of larger sources, about this many names are hashed: an added or removed image shifts the others.
_COMPARED_NAMES = 10_000


def describe_source(source: ImageSource) -> str:
    """The number of images, and a digest of their names, order, classes and labels of a table."""
    step = max(1, len(source) // _COMPARED_NAMES)
    names = [source.identifier(index) for index in range(0, len(source), step)]
    return f"{len(source)} ({_digest([*_within(names), *source.classes, *_labels(source)])})"


def _labels(source: ImageSource) -> list[str]:
    """The labels of images that have them of a table."""
    if isinstance(source, ClassedImages):
        return [str(source.labels)]
    if isinstance(source, TargetImages):
        return [*source.names, str(source.targets.tolist())]
    return []


def describe_names(names: Sequence[str]) -> str:
    """The number of names, and a digest of them in order."""
    return f"{len(names)} ({_digest(_within(names))})"


def _within(names: Sequence[str]) -> list[str]:
    """The names without their common prefix, which is where all of them are stored."""
    shared = 0
    if names:
        pairs = zip(min(names), max(names), strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return [name[shared:] for name in names]


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()[:12]
