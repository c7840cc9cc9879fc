"""Labels from a table: a CSV file whose first column names images, and whose others are labels."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Real
from torch import Tensor

from simmim.data.dataset import ImageSource, LazyImageSource
from simmim.data.decoding.lazy_image import DecodedImage, LazyImage
from simmim.data.sources.image_folder import FolderSplits, ImageFolder
from simmim.data.sources.streams import ImageStream
from simmim.data.unreadable.policy import Label
from simmim.utils.console import warn
from simmim.utils.errors import UserError

_SEPARATORS = ",;\t"


class Table(NamedTuple):
    """Labels of a source's images as text: the columns by name, each with an entry per image.

    `origin` is the file's name in messages, `rows` the place in it of each image's entries.
    """

    columns: Mapping[str, Sequence[str]]
    rows: Sequence[str]
    origin: str

    def choose(self, names: Sequence[str] | None) -> dict[str, Sequence[str]]:
        """The columns of these names, all by default; UserError if one is missing."""
        missing = [name for name in names or () if name not in self.columns]
        if missing:
            raise UserError(
                f"{self.origin} has no column {', '.join(missing)}; it has {', '.join(self.columns)}"
            )
        return {name: self.columns[name] for name in names or self.columns}

    def pick(self, indices: Sequence[int]) -> "Table":
        """The table of these images alone."""
        columns = {
            name: [entries[index] for index in indices] for name, entries in self.columns.items()
        }
        return Table(columns, [self.rows[index] for index in indices], self.origin)


@runtime_checkable
class HasTable(ImageSource, Protocol):
    """A source whose images have a table of labels."""

    def label_table(self) -> Table:
        """The labels, a row per image."""


class _Images:
    """What sources on top of another source have in common: the other's images."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        """Number of images."""
        return len(self.source)

    def load(self, index: int) -> tuple[Real[Tensor, "c h w"], Label]:
        """The image at its own size, and its label."""
        return self.source.load(index)[0], self.label(index)

    def open(self, index: int) -> tuple[LazyImage, Label]:
        """Like `load`, with decoding deferred if possible."""
        if isinstance(self.source, LazyImageSource):
            return self.source.open(index)[0], self.label(index)
        return DecodedImage(self.source.load(index)[0]), self.label(index)

    def identifier(self, index: int) -> str:
        """The image's name."""
        return self.source.identifier(index)

    def label(self, index: int) -> Label:
        """The image's label."""
        raise NotImplementedError


class TabledImages(_Images):
    """Images with a table of labels, which a task turns into labels (-1 until then)."""

    classes: tuple[str, ...] = ()

    def __init__(self, source: ImageSource, table: Table) -> None:
        super().__init__(source)
        self.table = table

    def label_table(self) -> Table:
        """The labels, a row per image."""
        return self.table

    def present_classes(self) -> tuple[str, ...]:
        """None."""
        return ()

    def label(self, index: int) -> Label:
        """No label yet."""
        return -1


class ClassedImages(_Images):
    """Images with a class each, given by number in `labels`."""

    def __init__(
        self, source: ImageSource, labels: Sequence[int], classes: tuple[str, ...]
    ) -> None:
        super().__init__(source)
        self.labels = labels
        self.classes = classes

    def present_classes(self) -> tuple[str, ...]:
        """The classes that occur in this source."""
        return tuple(self.classes[label] for label in sorted(set(self.labels)))

    def label(self, index: int) -> Label:
        """The number of the image's class."""
        return self.labels[index]


class TargetImages(_Images):
    """Images with a vector of targets each; `names` are those of the entries."""

    classes: tuple[str, ...] = ()

    def __init__(
        self, source: ImageSource, targets: Float[Tensor, "n k"], names: tuple[str, ...]
    ) -> None:
        super().__init__(source)
        self.targets = targets
        self.names = names

    def present_classes(self) -> tuple[str, ...]:
        """None: these labels are no classes."""
        return ()

    def label(self, index: int) -> Float[Tensor, " k"]:
        """The image's targets."""
        return self.targets[index]


def read_table(path: str | Path, folder: Path) -> "Rows":
    """Reads a CSV file (separated by comma, semicolon or tab, in UTF-8) of images below `folder`.

    Raises:
        UserError: the file is missing, has no column of labels, no rows, rows of another length than
            its header, or two rows of the same image.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.labels {path} cannot be read ({error}); give a CSV file in UTF-8, whose first "
            "column names images"
        ) from error
    head = text.partition("\n")[0]
    delimiter = max(_SEPARATORS, key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        lines = [Row(reader.line_num, [entry.strip() for entry in entries]) for entries in reader]
    except csv.Error as error:
        raise UserError(
            f"line {reader.line_num} of data.labels {path} is not one of a CSV file ({error}); mend it"
        ) from error
    header = lines[0].entries if lines else []
    if len(header) < 2 or len(set(header)) < len(header):
        raise UserError(
            f"data.labels {path} needs a header line: a column of images' names, then columns of "
            f"labels, each with a name of its own; it has {', '.join(header) or 'none'}"
        )
    rows: dict[str, Row] = {}
    for row in lines[1:]:
        if not any(row.entries):
            continue
        if len(row.entries) != len(header):
            raise UserError(
                f"line {row.line} of data.labels {path} has {len(row.entries)} entries and the header "
                f"{len(header)}; mend it"
            )
        name = as_name(row.entries[0])
        if name in rows:
            raise UserError(
                f"lines {rows[name].line} and {row.line} of data.labels {path} are both for {name}; "
                "leave one"
            )
        rows[name] = row
    if not rows:
        raise UserError(f"data.labels {path} has no row below its header; add one an image")
    return Rows(str(path), tuple(header[1:]), rows, folder)


class Row(NamedTuple):
    """A row of a CSV file: its line, counted from 1, and its entries."""

    line: int
    entries: list[str]


class Names(NamedTuple):
    """What a table may call an image: its whole paths, and shorter names that others may have too."""

    paths: list[str]
    others: list[str]


class Rows(NamedTuple):
    """A CSV file's rows by the names of their images, which lie below `folder`."""

    path: str
    columns: tuple[str, ...]
    rows: Mapping[str, Row]
    folder: Path

    def find(self, parts: Sequence[ImageFolder]) -> list[list[Row | None]]:
        """The row of each image of each part, None without one.

        An image is named by its path below the data's folder, the table's or its own part, by its
        file's name, or by any of these without its suffix; a name that several images have counts
        for none of them.

        Raises:
            UserError: an image has several rows.
        """
        candidates = [self._names_of(part) for part in parts]
        flat = [names for part in candidates for names in part]
        paths = Counter(name for names in flat for name in {*names.paths})
        others = Counter(name for names in flat for name in {*names.paths, *names.others})

        def find_row(names: Names) -> Row | None:
            unique = [name for name in names.paths if paths[name] == 1]
            unique += [name for name in names.others if others[name] == 1]
            rows = {self.rows[name].line: self.rows[name] for name in unique if name in self.rows}
            if len(rows) > 1:
                raise UserError(
                    f"lines {' and '.join(map(str, sorted(rows)))} of data.labels {self.path} are for "
                    f"the same image, {names.paths[0]}; leave one"
                )
            return next(iter(rows.values()), None)

        return [[find_row(names) for names in part] for part in candidates]

    def _names_of(self, images: ImageFolder) -> list[Names]:
        # Resolved, because any of them may have been reached through a link.
        root = images.root.resolve()
        folders = (self.folder.resolve(), Path(self.path).resolve().parent)
        below = [root.relative_to(folder) for folder in folders if root.is_relative_to(folder)]
        return [names_of(path, images.root, below) for path in images.paths]

    def label(self, images: ImageFolder, found: Sequence[Row | None], what: str) -> TabledImages:
        """The images with a row in `found`, and their table; warns of the others, which are left out.

        Raises:
            UserError: no image has a row.
        """
        kept = [index for index, row in enumerate(found) if row is not None]
        if not kept and images.paths:
            raise UserError(
                f"none of the {len(images):,} {what} images has a row in data.labels {self.path}: its "
                f"first column has names such as {next(iter(self.rows))}, and an image is "
                f"{images.paths[0]}; use paths below data.root, or file names"
            )
        if len(kept) < len(images):
            first = next(index for index, row in enumerate(found) if row is None)
            warn(
                f"left out, without a row in {self.path}: {len(images) - len(kept):,} of "
                f"{len(images):,} {what} images, such as {images.identifier(first)}"
            )
        rows = [row for row in found if row is not None]
        columns = {
            name: [row.entries[at] for row in rows] for at, name in enumerate(self.columns, 1)
        }
        table = Table(columns, [f"line {row.line}" for row in rows], self.path)
        chosen = [images.paths[index] for index in kept]
        return TabledImages(ImageFolder(images.root, chosen, (), images.channels), table)


def names_of(path: str, root: Path, below: Sequence[Path]) -> Names:
    """What a table may call the image at `path` in `root`; `below` are other paths of `root`."""
    paths = [*((other / path).as_posix() for other in below), path, (root / path).as_posix()]
    file = PurePosixPath(path)
    return Names(
        paths, [file.name, *(name.removesuffix(file.suffix) for name in [*paths, file.name])]
    )


def label_folders(
    folders: FolderSplits, labels: str | Path, root: str | Path
) -> tuple[TabledImages, TabledImages]:
    """The training and held-out images of a folder that have a row in the CSV file `labels`.

    Raises:
        UserError: as `read_table`, or no image of a part has a row.
    """
    rows = read_table(labels, Path(root).expanduser())
    parts = (folders.train, folders.val)
    train, val = (
        rows.label(images, found, what)
        for images, found, what in zip(
            parts, rows.find(parts), ("training", "held-out"), strict=True
        )
    )
    used = len(train) + len(val)
    # Where nothing is trained, the other rows are those of training images, which are not looked at.
    if used < len(rows.rows) and len(folders.train):
        warn(f"{len(rows.rows) - used:,} of {len(rows.rows):,} rows of {rows.path} have no image")
    return train, val


@runtime_checkable
class Parts(Protocol):
    """The images to train and to validate on: an `ImageDataModule`."""

    train: ImageSource | ImageStream
    val: ImageSource


def labelled_parts(images: Parts) -> list[str]:
    """The names of the parts whose images a table can label: without those that are not trained on."""
    trains = not isinstance(images.train, ImageStream) and len(images.train) > 0
    return ["train", "val"] if trains else ["val"]


def with_targets(
    source: ImageSource, columns: Sequence[Sequence[float]], names: tuple[str, ...]
) -> TargetImages:
    """The source's images with columns of numbers as their targets."""
    images = source.source if isinstance(source, TabledImages) else source
    targets = torch.tensor(columns, dtype=torch.float64).T.float().contiguous()
    return TargetImages(images, targets, names)


def as_names(columns: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of columns as an option gives them: one, several, or None for what is found."""
    if columns is None:
        return None
    return (columns,) if isinstance(columns, str) else tuple(columns)


def as_name(text: str) -> str:
    """An image's name as it is compared: with `/`, and without `./`."""
    return text.replace("\\", "/").removeprefix("./")


def require_table(source: ImageSource, task: str) -> Table:
    """The source's table; UserError if it has none."""
    if isinstance(source, HasTable):
        return source.label_table()
    found = ""
    if isinstance(source, ImageFolder):
        near = sorted([*source.root.glob("*.csv"), *source.root.parent.glob("*.csv")])
        found = f"={near[0]}" if near else "=FILE.csv"
    raise UserError(
        f"task={task} needs labels from a table; use data=imagefolder data.labels{found or '=FILE.csv'}"
        ", whose first column names the images, or data=demo"
    )
