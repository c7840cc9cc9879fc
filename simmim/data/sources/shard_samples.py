"""Which files of a tar shard are images to train on, and which of them belong together.

By WebDataset's convention, the files of a sample are adjacent and share their name up to the first
dot. The rest is a part's name and the ending (`7.depth.png`), or more of the file's own name, if
that contains dots (`shot.2024.03.jpg`): no part is called `2024`. To lose no images, however the
shards were made, a sample's images are:

- the file without a part's name (`7.jpg`), a JPEG rather than others; maps and masks beside it are
  left out;
- else the file whose part's name says that it is the image (`7.rgb.png`);
- else every file, except maps beside other images (views: `7.left.jpg`, `7.right.jpg`).

`image_key` replaces these rules.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Generic, NamedTuple, TypeVar

from simmim.data.decoding.decode import IMAGE_SUFFIXES
from simmim.utils.errors import UserError

LABEL_SUFFIX = ".cls"

_PART = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_PICTURES = frozenset(
    ("rgb", "image", "img", "picture", "photo", "color", "colour", "input", "original", "source")
)
_MAPS = re.compile(
    r"(?:.*_)?(?:depth|seg|segmentation|semantic|instances?|panoptic|masks?|labels?|annotations?|normals?|"
    r"flow|disparity|edges?|alpha|matte|heatmap|thumb|thumbnail|target|gt)(?:_.*|\d*)"
)
_PREFERRED = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp")
# About this many files with the same name up to the first dot are kept in memory together.
_MOST_TOGETHER = 64

Content = TypeVar("Content")


class MemberName(NamedTuple):
    """A file's name within a shard.

    Attributes:
        group: the path up to the first dot of the file's name.
        key: the path without part and ending.
        part: what the file is in its sample, such as `depth`; "" if its name does not say.
        ending: from the last dot on, in lower case.
    """

    group: str
    key: str
    part: str
    ending: str

    @property
    def is_image(self) -> bool:
        """Whether it has the ending of an image."""
        return self.ending in IMAGE_SUFFIXES

    @property
    def is_map(self) -> bool:
        """Whether it is a map that describes an image, such as depth, not an image to train on."""
        return _MAPS.fullmatch(self.part.lower()) is not None

    @property
    def suffixes(self) -> str:
        """Part and ending: what `image_key` is compared with."""
        return f"{self.part}{self.ending}".lstrip(".").lower()

    @property
    def folder(self) -> str:
        """The first folder of the path; "" if it has none."""
        return self.key.split("/", 1)[0] if "/" in self.key else ""


@dataclass(frozen=True)
class File(Generic[Content]):
    """A file of a shard: its path in the shard, its parsed name, and its content."""

    path: str
    name: MemberName
    content: Content


@dataclass(frozen=True)
class SampleImage(Generic[Content]):
    """An image, and its label file, if any."""

    image: File[Content]
    label: File[Content] | None


def split_name(name: str) -> MemberName:
    """Parses a member's name."""
    path = PurePosixPath(name)
    first, *rest = path.name.split(".")
    ending = f".{rest.pop().lower()}" if rest else ""
    parts: list[str] = []
    # At most one word before the ending is a part.
    while rest and not parts and _PART.fullmatch(rest[-1]):
        parts.append(rest.pop())
    stem = ".".join([first, *rest])
    group, key = ((path.parent / one).as_posix() for one in (first, stem))
    return MemberName(group, key, "".join(parts), ending)


def is_needed(name: str) -> bool:
    """Whether a member is an image or a label, and neither hidden nor added by macOS."""
    path = PurePosixPath(name)
    if path.name.startswith(".") or "__MACOSX" in path.parts:
        return False
    taken_apart = split_name(name)
    return taken_apart.is_image or taken_apart.ending == LABEL_SUFFIX


def image_keys(image_key: str | Sequence[str] | None) -> tuple[str, ...]:
    """The patterns in `image_key`: `jpg`, `jpg;png`, `left.*`, or a list; () for None.

    Raises:
        UserError: there is an empty pattern.
    """
    if image_key is None:
        return ()
    given = image_key.split(";") if isinstance(image_key, str) else image_key
    keys = tuple(str(key).strip().lstrip(".").lower() for key in given)
    if not keys or not all(keys):
        raise UserError(
            f"data.image_key={image_key} names no ending of a file; use jpg, 'jpg;png' or 'left.*', or "
            "null"
        )
    return keys


def group_files(files: Iterable[File[Content]]) -> Iterator[list[File[Content]]]:
    """Groups of adjacent files that share their name up to the first dot, each of limited size."""
    group: list[File[Content]] = []
    for file in files:
        if group:
            is_other = file.name.group != group[-1].name.group
            is_long = len(group) >= _MOST_TOGETHER and file.name.key != group[-1].name.key
            if is_other or is_long:
                yield group
                group = []
        group.append(file)
    if group:
        yield group


def choose_images(
    group: Sequence[File[Content]], keys: Sequence[str] = ()
) -> list[SampleImage[Content]]:
    """The images among files that belong together, in order, each with its label."""
    images = [file for file in group if file.name.is_image]
    labels = [file for file in group if file.name.ending == LABEL_SUFFIX]
    by_key: dict[str, list[File[Content]]] = {}
    for image in images:
        by_key.setdefault(image.name.key, []).append(image)
    if keys:
        chosen = [one for some in by_key.values() for one in _by_pattern(some, keys)]
    else:
        chosen = [one for some in by_key.values() for one in _by_name(some)]
        pictures = [image for image in chosen if not image.name.is_map]
        chosen = pictures or chosen
    return [SampleImage(image, _label_of(image, labels)) for image in chosen]


def _by_pattern(images: list[File[Content]], keys: Sequence[str]) -> list[File[Content]]:
    """The images that match the first pattern that any of them matches."""
    for key in keys:
        found = [image for image in images if fnmatchcase(image.name.suffixes, key)]
        if found:
            return found
    return []


def _by_name(images: list[File[Content]]) -> list[File[Content]]:
    plain = [image for image in images if not image.name.part]
    if plain:
        return [min(plain, key=lambda image: image.name.ending not in _PREFERRED)]
    called = [image for image in images if image.name.part.lower() in _PICTURES]
    if called:
        return called[:1]
    return [image for image in images if not image.name.is_map] or images[:1]


def _label_of(image: File[Content], labels: Sequence[File[Content]]) -> File[Content] | None:
    """The label file with exactly the image's name, or that of its sample."""
    wanted = (
        (image.name.key, image.name.part),
        (image.name.key, ""),
        (image.name.group, ""),
    )
    for one in wanted:
        for label in labels:
            if (label.name.key, label.name.part) == one:
                return label
    return None


def describe_left_out(left_out: Iterable[str]) -> str:
    """One line on the endings of images that are left out."""
    endings = sorted(set(left_out))
    shown = ", ".join(endings[:5]) + (", …" if len(endings) > 5 else "")
    return (
        f"of samples with several images, those that end in {shown} are left out; data.image_key="
        f"{endings[0]} would take these"
    )
