"""A folder of images: nested as it likes, with or without class folders."""

import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Real
from torch import Tensor

from simmim.data.decode import IMAGE_SUFFIXES, open_image, read_image
from simmim.data.pictures import Picture
from simmim.data.unreadable import patiently, unreadable
from simmim.errors import UserError

log = logging.getLogger(__name__)

# How many files are tried before a folder is said to hold no readable image.
_PROBED_FILES = 100


class ImageFolder:
    """Images below `root`, in the order of their paths.

    Labels are the first folder below `root`, where every image lies in one (`classes` is empty and
    labels are -1 otherwise).
    """

    def __init__(
        self, root: Path, paths: Sequence[str], classes: tuple[str, ...] = (), channels: int = 3
    ) -> None:
        self.root = root
        self.channels = channels
        self.paths = list(paths)
        self.classes = classes
        self._label_of = {name: label for label, name in enumerate(classes)}

    def present_classes(self) -> tuple[str, ...]:
        """The classes that some image here has."""
        if not self.classes:
            return ()
        return tuple(sorted({path.split("/", 1)[0] for path in self.paths}))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def load(self, index: int) -> tuple[Real[Tensor, "c h w"], int]:
        """Decodes one image; UserError names a file that cannot be read."""
        picture, label = self.open(index)
        return picture.decode(), label

    def open(self, index: int) -> tuple[Picture, int]:
        """The same, decoded later if it can be."""
        path = self.paths[index]
        label = self._label_of[path.split("/", 1)[0]] if self.classes else -1
        return open_image(self.root / path, self.channels), label

    def read(self, index: int) -> bytes:
        """The file of one image; UnreadableImageError where it cannot be read."""
        try:
            return (self.root / self.paths[index]).read_bytes()
        except OSError as error:
            raise unreadable(self.identifier(index), error) from error

    def identifier(self, index: int) -> str:
        """The path."""
        return f"{self.root}/{self.paths[index]}"


class FolderSplits(NamedTuple):
    """What a run trains on, and what it holds out."""

    train: ImageFolder
    val: ImageFolder


def split_folder(root: str | Path, val_ratio: float, channels: int = 3) -> FolderSplits:
    """Images of `root/train` and `root/val` where both exist, else `val_ratio` of `root` held out.

    Which images are held out depends on their paths alone, so that a file added later moves few.

    Raises:
        UserError: a folder that is missing, empty or without a readable image, or a ratio that
            leaves either part empty.
    """
    root = _existing(root)
    if (root / "train").is_dir() and (root / "val").is_dir():
        train, val = (open_folder(root / split, channels) for split in ("train", "val"))
        # Numbered together, for either may lack a class that the other has.
        both = train.classes and val.classes
        classes = tuple(sorted({*train.classes, *val.classes})) if both else ()
        return FolderSplits(
            ImageFolder(train.root, train.paths, classes, channels),
            ImageFolder(val.root, val.paths, classes, channels),
        )
    if not 0 < val_ratio < 1:
        raise UserError(
            f"data.val_ratio {val_ratio} is not between 0 and 1 (both excluded); use 0.05, "
            f"or put the images into {root}/train and {root}/val"
        )
    whole = open_folder(root, channels)
    if len(whole) < 2:
        raise UserError(f"{root} holds one image, none is left to validate on; add more images")
    by_hash = sorted(whole.paths, key=lambda path: zlib.crc32(os.fsencode(path)))
    held_out = set(by_hash[: min(max(1, round(val_ratio * len(whole))), len(whole) - 1)])
    return FolderSplits(
        *(
            ImageFolder(
                root,
                [path for path in whole.paths if (path in held_out) == is_held_out],
                whole.classes,
                channels,
            )
            for is_held_out in (False, True)
        )
    )


def held_out_folder(root: str | Path, channels: int = 3) -> ImageFolder:
    """Every image of `root/val` where there is one, else of `root`: for what is not trained.

    Raises:
        UserError: a folder that is missing, empty or without a readable image.
    """
    root = _existing(root)
    return open_folder(root / "val" if (root / "val").is_dir() else root, channels)


def open_folder(root: Path, channels: int = 3) -> ImageFolder:
    """All images below `root`; UserError if there is none, or none that can be read."""
    paths = sorted(find_images(root))
    if not paths:
        kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise UserError(f"{root} holds no image ({kinds}); set data.root to a folder of images")
    _require_readable(root, paths, channels)
    in_folders = all("/" in path for path in paths)
    classes = sorted({path.split("/", 1)[0] for path in paths}) if in_folders else []
    return ImageFolder(root, paths, tuple(classes), channels)


def find_images(root: Path) -> Iterator[str]:
    """Paths below `root` (with `/`) that end like images, but for hidden files and folders.

    Links are followed; a folder that was met before, as in a circle of links, is named and left out.

    Raises:
        UserError: a folder that cannot be listed.
    """
    seen: dict[str, str] = {}
    waiting = [""]
    while waiting:
        below = waiting.pop()
        folder = root / below
        real = os.path.realpath(folder)
        if real in seen:
            log.warning(f"{folder} is the folder {root / seen[real]} once more: left out")
            continue
        seen[real] = below
        entries = sorted(patiently(partial(_list, folder)), key=lambda entry: entry.name)
        prefix = f"{below}/" if below else ""
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        folders = [entry for entry in visible if _is_folder(entry)]
        waiting += [prefix + entry.name for entry in reversed(folders)]
        yield from (
            prefix + entry.name
            for entry in visible
            if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and _may_be_read(entry)
        )


def _list(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be listed ({error.strerror}); mend that, or move it out of data.root"
        ) from error


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # as of a link to itself
        log.warning(f"{entry.path} cannot be followed ({error.strerror}): left out")
        return False


def _may_be_read(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a file, or a link to one that is gone: no folder, no pipe that waits."""
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:
        return True  # whoever reads it says why not


def _existing(root: str | Path) -> Path:
    root = Path(root).expanduser()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"data.root {root} {what}; set data.root to a folder of images")
    # Lists of images name the same ones wherever a command is started.
    return root.absolute()


def _require_readable(root: Path, paths: Sequence[str], channels: int) -> None:
    """Raises UserError if none of the first files can be decoded, with the first one's reason."""
    reason: UserError | None = None
    for path in paths[:_PROBED_FILES]:
        try:
            read_image(root / path, channels)
        except UserError as error:
            reason = reason or error
        else:
            return
    raise UserError(f"{root} holds no readable image among {len(paths)} files: {reason}")
