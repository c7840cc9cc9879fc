"""A folder of images, nested in any way, with or without class folders."""

import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Real
from torch import Tensor

from simmim.data.decoding.decode import IMAGE_SUFFIXES, open_image, read_image
from simmim.data.decoding.lazy_image import LazyImage
from simmim.data.split_names import find_parts, part_of
from simmim.data.unreadable.retry import retry_transient_io, unreadable
from simmim.utils.console import say, warn
from simmim.utils.errors import UserError

log = logging.getLogger(__name__)

# How many files are tried before a folder is said to hold no readable image.
_PROBED_FILES = 100
_FOLDERS_OF_IMAGES = ("images", "image", "imgs", "img", "jpegimages", "data")
# Entries that mark a run directory, and its folders, which may hold images.
_SIGNS_OF_RUNS = (".hydra", "reconstructions")
_FOLDERS_OF_RUNS = ("reconstructions", "checkpoints", "tensorboard", "earlier")


class ImageFolder:
    """Images below `root`, in the order of their paths.

    An image's label is the first folder of its path below `root`, or -1 if it is in none. Without
    `classes`, all labels are -1.
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
        """The classes that occur in these images."""
        if not self.classes:
            return ()
        return _class_folders(self.paths)

    def unlabelled(self) -> list[int]:
        """Indices of the images beside the class folders."""
        return self.loose() if self.classes else []

    def loose(self) -> list[int]:
        """Indices of the images that are directly in `root`."""
        return [index for index, path in enumerate(self.paths) if "/" not in path]

    def labelled(self) -> "ImageFolder":
        """This folder without the images that are directly in `root`."""
        paths = [path for path in self.paths if "/" in path]
        return ImageFolder(self.root, paths, self.classes, self.channels)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def load(self, index: int) -> tuple[Real[Tensor, "c h w"], int]:
        """Decodes one image; a UserError names it if it cannot be read."""
        picture, label = self.open(index)
        return picture.decode(), label

    def open(self, index: int) -> tuple[LazyImage, int]:
        """Like `load`, but with decoding deferred if possible."""
        path = self.paths[index]
        folder, slash, _ = path.partition("/")
        label = self._label_of.get(folder, -1) if slash else -1
        return open_image(self.root / path, self.channels), label

    def read(self, index: int) -> bytes:
        """The encoded file of one image; UnreadableImageError if it cannot be read."""
        try:
            return (self.root / self.paths[index]).read_bytes()
        except OSError as error:
            raise unreadable(self.identifier(index), error) from error

    def identifier(self, index: int) -> str:
        """The image's path."""
        return f"{self.root}/{self.paths[index]}"


class FolderSplits(NamedTuple):
    """The training images and the held-out images."""

    train: ImageFolder
    val: ImageFolder


def split_folder(
    root: str | Path,
    val_ratio: float,
    channels: int = 3,
    val_root: str | Path | None = None,
) -> FolderSplits:
    """The images of `root` and `val_root`, or of the parts of `root`; else holds out `val_ratio`.

    Parts are folders such as `train` and `val` (`find_split_folders`). Without any, which images are
    held out depends only on their paths, so that a file added later changes few of them.

    Raises:
        UserError: a folder is missing, empty or without a readable image, the ratio leaves either
            part empty, or the parts are ambiguous.
    """
    root = _existing(root)
    if val_root is not None:
        folders = SplitFolders(root, _existing(val_root, "data.val_root"))
    else:
        folders = find_split_folders(root) or SplitFolders(root, None)
    if folders.held_out is not None:
        train, val = open_folder(folders.train, channels), open_folder(folders.held_out, channels)
        # Numbered together, as either part may lack a class that the other has.
        both = train.classes and val.classes
        classes = tuple(sorted({*train.classes, *val.classes})) if both else ()
        return FolderSplits(
            ImageFolder(train.root, train.paths, classes, channels),
            ImageFolder(val.root, val.paths, classes, channels),
        )
    whole = open_folder(root, channels)
    if within := _parts_within_classes(whole):
        return within
    if len(whole) < 2:
        raise UserError(f"{root} holds one image, none is left to validate on; add more images")
    if not 0 < val_ratio < 1:
        raise UserError(
            f"data.val_ratio {val_ratio} is not between 0 and 1 (both excluded); use 0.05, "
            f"or put the images into {root}/train and {root}/val"
        )
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


def held_out_folder(
    root: str | Path, channels: int = 3, val_root: str | Path | None = None
) -> ImageFolder:
    """All images of `val_root`, of the held-out part of `root`, or of `root`: if nothing is trained.

    Raises:
        UserError: a folder is missing, empty or without a readable image, or parts are ambiguous.
    """
    if val_root is not None:
        return open_folder(_existing(val_root, "data.val_root"), channels)
    root = _existing(root)
    if folders := find_split_folders(root):
        return open_folder(folders.held_out or root, channels)
    # Only a val folder, for example because the training images are elsewhere.
    named = _folder_names(root)
    alone = [name for name in named if part_of(name) == "val"]
    is_part = len(alone) == 1 and all(part_of(name) for name in named)
    whole = open_folder(root / alone[0] if is_part else root, channels)
    if within := _parts_within_classes(whole):
        return within.val
    if part_of(whole.root.name) is None:
        say(f"{root} has no val: all its images are judged, those that a run trained on too")
    return whole


def _parts_within_classes(whole: ImageFolder) -> FolderSplits | None:
    """The parts if each class folder has them, such as `cat/train` and `cat/val`; else None."""
    folders = [path.split("/")[1] if path.count("/") > 1 else "" for path in whole.paths]
    names = sorted(set(folders))
    parts = find_parts(names, whole.root) if all(part_of(name) for name in names) else None
    if parts is None:
        return None
    say(
        f"parts of {whole.root}: {parts.train} of each class to train on, {parts.held_out} held out"
    )
    return FolderSplits(
        *(
            ImageFolder(
                whole.root,
                [path for path, one in zip(whole.paths, folders, strict=True) if one == part],
                whole.classes,
                whole.channels,
            )
            for part in parts
        )
    )


class SplitFolders(NamedTuple):
    """The folders of training and held-out images (None: to be split from the training images)."""

    train: Path
    held_out: Path | None


def find_split_folders(root: Path, depth: int = 4) -> SplitFolders | None:
    """The parts of a data set in `root`, or in the subfolder with all its images; None without parts.

    That subfolder is the only one, or `images` beside annotations; up to `depth` levels are
    searched. Images beside the parts are left out, with a warning.

    Raises:
        UserError: several folders may be the same part, or `train` and `test` may be classes, like
            the folders beside them.
    """
    names = _folder_names(root)
    parts = find_parts(names, root)
    loose = [entry.name for entry in _list(root) if _is_image(entry)]
    if parts is None:
        within = names if len(names) == 1 else [name for name in names if _is_of_images(name)]
        if len(within) != 1 or loose or depth == 0:
            return None
        return find_split_folders(root / within[0], depth - 1)
    others = [name for name in names if name not in parts and _holds_images(root / name)]
    classes = [name for name in others if part_of(name) is None]
    if classes and part_of(parts.held_out) == "test":
        raise UserError(
            f"{root} has {parts.train} and {parts.held_out} beside {', '.join(classes[:3])}: parts of "
            f"a data set, or classes? If parts, use data.root={root}/{parts.train} "
            f"data.val_root={root}/{parts.held_out}; if classes, rename one of the two"
        )
    say(f"parts of {root}: {parts.train} to train on, {parts.held_out} held out")
    if left_out := others + loose:
        shown = ", ".join(left_out[:5]) + (", …" if len(left_out) > 5 else "")
        warn(f"left out of {root}: {shown}, for it lies in neither part")
    return SplitFolders(root / parts.train, root / parts.held_out)


def _is_of_images(name: str) -> bool:
    return name.lower() in _FOLDERS_OF_IMAGES


def open_folder(root: Path, channels: int = 3) -> ImageFolder:
    """All images below `root`; UserError if there is none, or none that can be read."""
    paths = sorted(find_images(root))
    if not paths:
        kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise UserError(f"{root} holds no image ({kinds}); set data.root to a folder of images")
    _require_readable(root, paths, channels)
    classes = find_classes(paths)
    if classes and (empty := sorted({*_folder_names(root)} - {*classes})):
        shown = ", ".join(empty[:5]) + (", …" if len(empty) > 5 else "")
        say(f"no classes of {root}, for they hold no image: {shown}")
    return ImageFolder(root, paths, classes, channels)


def find_classes(paths: Sequence[str]) -> tuple[str, ...]:
    """The first folders of the paths, if most images are in one; the other images are strays."""
    in_folders = sum("/" in path for path in paths)
    return _class_folders(paths) if 2 * in_folders > len(paths) else ()


def _class_folders(paths: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted({path.split("/", 1)[0] for path in paths if "/" in path}))


def find_images(root: Path) -> Iterator[str]:
    """Paths below `root` (with `/`) with the suffix of an image, except hidden files and folders.

    Links are followed; a folder that was visited before, as with circular links, is left out with a
    warning. Run directories below `root` are left out, too: their images are not data.

    Raises:
        UserError: a folder cannot be listed.
    """
    seen: dict[str, str] = {}
    waiting = [""]
    runs: list[Path] = []
    while waiting:
        below = waiting.pop()
        folder = root / below
        real = os.path.realpath(folder)
        if real in seen:
            log.warning(f"{folder} is the folder {root / seen[real]} once more: left out")
            continue
        seen[real] = below
        entries = sorted(_list(folder), key=lambda entry: entry.name)
        is_run = any(entry.name in _SIGNS_OF_RUNS for entry in entries) and _is_run(folder)
        if is_run and below:
            runs.append(folder)
            continue
        prefix = f"{below}/" if below else ""
        visible = [entry for entry in entries if not _is_hidden(entry.name)]
        folders = [entry for entry in visible if _is_folder(entry)]
        if is_run:
            folders = [entry for entry in folders if entry.name not in _FOLDERS_OF_RUNS]
        waiting += [prefix + entry.name for entry in reversed(folders)]
        yield from (prefix + entry.name for entry in visible if _is_image(entry))
    if runs:
        say(f"left out are {len(runs)} run directories below {root}, as {runs[0]}: no data")


def _is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or was added to an archive by macOS (`__MACOSX`)."""
    return name.startswith(".") or name == "__MACOSX"


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run directory of simmim, also of a run called from Python."""
    return (folder / ".hydra" / "resolved.yaml").exists() or all(
        (folder / name).is_dir() for name in ("checkpoints", "reconstructions")
    )


def _is_image(entry: os.DirEntry[str]) -> bool:
    is_one = Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and not _is_hidden(entry.name)
    return is_one and _may_be_read(entry)


def _folder_names(root: Path) -> list[str]:
    """Names of the folders in `root`, except hidden ones."""
    entries = [entry for entry in _list(root) if not _is_hidden(entry.name)]
    return sorted(entry.name for entry in entries if _is_folder(entry))


def _holds_images(folder: Path) -> bool:
    return not _is_run(folder) and next(find_images(folder), None) is not None


def _list(folder: Path) -> list[os.DirEntry[str]]:
    return retry_transient_io(partial(_scan, folder))


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be listed ({error.strerror}); mend that, or move it out of data.root"
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # such as a link to itself
        log.warning(f"{entry.path} cannot be followed ({error.strerror}): left out")
        return False


def _may_be_read(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a file or a broken link, not a folder or a pipe, which would block."""
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:
        return True  # reading it raises the error


def _existing(root: str | Path, option: str = "data.root") -> Path:
    root = Path(root).expanduser()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"{option} {root} {what}; set {option} to a folder of images")
    # Absolute, so that lists of images hold for any working directory.
    return root.absolute()


def _require_readable(root: Path, paths: Sequence[str], channels: int) -> None:
    """Raises UserError, with the first file's reason, if none of the first files can be decoded."""
    reason: UserError | None = None
    for path in paths[:_PROBED_FILES]:
        try:
            read_image(root / path, channels)
        except UserError as error:
            reason = reason or error
        else:
            return
    raise UserError(f"{root} holds no readable image among {len(paths)} files: {reason}")
