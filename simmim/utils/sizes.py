"""Sizes: `(height, width)` tuples in the code; in options, an int means a square."""

from collections.abc import Sequence
from typing import TypeAlias

from simmim.utils.errors import UserError

Pair: TypeAlias = tuple[int, int]
Size: TypeAlias = int | Sequence[int]


def as_pair(size: Size, name: str) -> Pair:
    """Returns `(height, width)` of an int (square) or of a sequence of two ints.

    `name` is shown in the UserError that is raised for anything else, or for sizes under 1.
    """
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise UserError(
            f"{name} {size} is not a positive int or a (height, width); use 192 or [192, 256]"
        )
    return pair[0], pair[1]


def show(pair: Pair) -> str:
    """`192` for a square, `192×256` for height 192 and width 256."""
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}×{pair[1]}"
