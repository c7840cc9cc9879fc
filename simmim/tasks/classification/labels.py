"""Gives images their classes: those of their folders or dataset, or of a column of a table."""

from simmim.data import ImageDataModule
from simmim.data.dataset import ImageSource
from simmim.data.sources.label_table import ClassedImages, Table, TabledImages
from simmim.utils.errors import UserError


def label_classes(images: ImageDataModule, column: str | None = None) -> None:
    """Makes the classes of a table's `column` (None: its only one) the labels; without one, none.

    Images outside of class folders are left out, with a warning.

    Raises:
        UserError: the column is missing, or has an empty entry; or there is a `column` and no table.
    """
    images.keep_labelled()
    sources = (images.train, images.val)
    entries = [
        choose_column(source.table, column) if isinstance(source, TabledImages) else []
        for source in sources
    ]
    if not any(isinstance(source, TabledImages) for source in sources):
        if column is not None:
            raise UserError(
                f"task.column={column} is of a table, and there is none; set data.labels=FILE.csv, or "
                "leave task.column out"
            )
        return
    classes = tuple(sorted({entry for of_source in entries for entry in of_source}))
    number = {name: place for place, name in enumerate(classes)}
    for part, source, of_source in zip(("train", "val"), sources, entries, strict=True):
        if isinstance(source, TabledImages):
            labelled: ImageSource = ClassedImages(
                source.source, [number[entry] for entry in of_source], classes
            )
            setattr(images, part, labelled)


def choose_column(table: Table, name: str | None) -> list[str]:
    """The entries of this column, or of the only one.

    Raises:
        UserError: there are several and none is named, or an entry is empty.
    """
    if name is None and len(table.columns) > 1:
        raise UserError(
            f"{table.origin} has {len(table.columns)} columns of labels ({', '.join(table.columns)}); "
            "name the one that has the classes, as task.column=NAME"
        )
    ((chosen, entries),) = table.choose(None if name is None else [name]).items()
    for place, entry in zip(table.rows, entries, strict=True):
        if not entry:
            raise UserError(
                f"{place} of {table.origin} has no {chosen}; fill it in or remove the line"
            )
    return list(entries)
