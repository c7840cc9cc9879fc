"""Gives images their sets of labels, from columns of a table."""

from collections.abc import Sequence

from simmim.data import ImageDataModule
from simmim.data.sources.label_table import Table, labelled_parts, require_table, with_targets
from simmim.utils.console import say, warn
from simmim.utils.errors import UserError

_FLAGS = {
    **dict.fromkeys(("1", "1.0", "true", "yes"), 1.0),
    **dict.fromkeys(("0", "0.0", "false", "no", ""), 0.0),
}
_SEPARATORS = ("|", ";", ",")
# A space cannot be typed as the value of an option.
_SPACE = "space"


def label_sets(
    images: ImageDataModule,
    columns: Sequence[str] | None,
    separator: str | None,
    known: Sequence[str] = (),
) -> tuple[str, ...]:
    """Makes columns of the table the labels; returns the labels' names.

    Each label has a column of 1 and 0 (or nothing), or one column has their names, with a
    `separator` between them. `columns` None are all of 1 and 0 or, without any, the only column.
    `known` are the labels of a trained model, of which the data may lack some.

    Raises:
        UserError: the data has no table, or the columns are missing or hold something else.
    """
    parts = labelled_parts(images)
    tables = [require_table(getattr(images, part), "multilabel") for part in parts]
    if columns is None and known and set(known) <= set(tables[0].columns):
        columns = known
    chosen = list(columns) if columns else find_label_columns(tables)
    for table in tables:
        table.choose(chosen)
    if all(is_flags(table, name) for table in tables for name in chosen):
        names = tuple(chosen)
        sets = [flagged(table, names) for table in tables]
    elif len(chosen) == 1:
        separator = find_separator(tables, chosen[0], separator)
        sets = [split_names(table, chosen[0], separator) for table in tables]
        found = sorted({name for of_part in sets for labels in of_part for name in labels})
        names = tuple(known or found)
        if not names:
            raise UserError(
                f"column {chosen[0]} of {tables[0].origin} names no label; choose another by "
                "task.columns=[NAME]"
            )
        if strange := sorted({*found} - {*names}):
            raise UserError(
                f"{tables[0].origin} has labels that the model does not know "
                f"({', '.join(strange[:4])}; it knows {', '.join(names[:4])}); remove them, or train a "
                "new head with python -m simmim.finetune"
            )
    else:
        raise UserError(describe_misfit(tables, chosen))
    for part, of_part in zip(parts, sets, strict=True):
        columns_of = [[float(name in labels) for labels in of_part] for name in names]
        setattr(images, part, with_targets(getattr(images, part), columns_of, names))
    say(f"{len(names)} labels: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}")
    return names


def find_label_columns(tables: Sequence[Table]) -> list[str]:
    """The columns of 1 and 0, or else the only column; UserError if there are several others."""
    names = list(tables[0].columns)
    flags = [name for name in names if all(is_flags(table, name) for table in tables)]
    if not flags and len(names) > 1:
        raise UserError(
            f"{tables[0].origin} has no column of 0 and 1 alone, and {len(names)} others "
            f"({', '.join(names[:5])}); name those with the labels by task.columns=[NAME]"
        )
    if flags and (others := [name for name in names if name not in flags]):
        warn(
            f"not labels, for they hold other than 1 and 0: {', '.join(others[:8])} "
            "(task.columns=[NAME] chooses)"
        )
    return flags or names


def is_flags(table: Table, name: str) -> bool:
    """Whether a column has only 1, 0 and empty entries, and not empty ones alone."""
    entries = {entry.lower() for entry in table.columns[name]}
    return entries <= _FLAGS.keys() and entries != {""}


def flagged(table: Table, names: Sequence[str]) -> list[set[str]]:
    """The labels of each image, from a column of 1 and 0 for each."""
    columns = [table.columns[name] for name in names]
    return [
        {name for name, entry in zip(names, row, strict=True) if _FLAGS[entry.lower()]}
        for row in zip(*columns, strict=True)
    ]


def find_separator(tables: Sequence[Table], name: str, separator: str | None) -> str:
    """The separator of names in a column: the given one, or the first of | ; , that occurs in it."""
    if separator == "":
        raise UserError(f"task.separator is empty; use task.separator={_SPACE} for a space")
    if separator is not None:
        return " " if separator == _SPACE else separator
    text = "".join(entry for table in tables for entry in table.columns[name])
    return next((one for one in _SEPARATORS if one in text), _SEPARATORS[0])


def split_names(table: Table, name: str, separator: str) -> list[set[str]]:
    """The labels of each image, from a column of names; an empty entry has none."""
    return [
        {part.strip() for part in entry.split(separator) if part.strip()}
        for entry in table.columns[name]
    ]


def describe_misfit(tables: Sequence[Table], names: Sequence[str]) -> str:
    """The first entry that is neither 0 nor 1, and what to do about it."""
    wrong = (
        (place, table.origin, name, entry)
        for table in tables
        for name in names
        for place, entry in zip(table.rows, table.columns[name], strict=True)
        if entry.lower() not in _FLAGS
    )
    place, origin, name, entry = next(wrong, ("every line", tables[0].origin, names[0], ""))
    return (
        f"{place} of {origin} has {name}={entry!r}, and a column of a label has 1, 0 or nothing; "
        "mend it, or choose other columns by task.columns=[NAME]"
    )
