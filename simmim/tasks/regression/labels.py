"""Gives images their numbers, from columns of a table."""

from collections.abc import Sequence

import torch

from simmim.data import ImageDataModule
from simmim.data.sources.label_table import Table, labelled_parts, require_table, with_targets
from simmim.utils.console import say
from simmim.utils.errors import UserError

_LARGEST = torch.finfo(torch.float32).max


def label_numbers(images: ImageDataModule, columns: Sequence[str] | None) -> tuple[str, ...]:
    """Makes these columns of the table the labels (None: all of numbers); returns their names.

    Raises:
        UserError: the data has no table, or the columns are missing or hold other than numbers, or
            fewer than two images are held out.
    """
    parts = labelled_parts(images)
    tables = [require_table(getattr(images, part), "regression") for part in parts]
    names = tuple(columns or find_number_columns(tables))
    if len(tables[-1].rows) < 2:
        raise UserError(
            f"{len(tables[-1].rows)} image is held out, and R² needs two or more; hold out more by "
            "data.val_ratio, or put more into val"
        )
    for part, table in zip(parts, tables, strict=True):
        numbers = [parse_numbers(table, name) for name in names]
        setattr(images, part, with_targets(getattr(images, part), numbers, names))
    say(f"predicts {', '.join(names)}")
    return names


def find_number_columns(tables: Sequence[Table]) -> list[str]:
    """The columns of numbers that are more than 0 and 1, which are labels of another task.

    Raises:
        UserError: there is none.
    """
    names = list(tables[0].columns)
    found = []
    for name in names:
        entries = [entry for table in tables for entry in table.columns[name] if entry]
        numbers = {as_number(entry) for entry in entries}
        if numbers - {None} and not numbers <= {0, 1}:
            found.append(name)
    if not found:
        raise UserError(
            f"{tables[0].origin} has no column of numbers other than 0 and 1; it has "
            f"{', '.join(names)}: name one by task.columns=[NAME]"
        )
    return found


def parse_numbers(table: Table, name: str) -> list[float]:
    """The numbers of a column; UserError for an entry that is none."""
    ((_, entries),) = table.choose([name]).items()
    numbers = [as_number(entry) for entry in entries]
    wrong = [place for place, number in enumerate(numbers) if number is None]
    if wrong:
        first = wrong[0]
        more = f", and {len(wrong) - 1:,} others" if len(wrong) > 1 else ""
        raise UserError(
            f"{table.rows[first]} of {table.origin} has {name}={entries[first]!r}, which is no finite "
            f"number{more}; mend or remove such lines, or choose other columns by task.columns=[NAME]"
        )
    return [number for number in numbers if number is not None]


def as_number(entry: str) -> float | None:
    """The number that an entry is; None if it is none, or not finite in float32."""
    try:
        number = float(entry)
    except ValueError:
        return None
    return number if abs(number) <= _LARGEST else None
