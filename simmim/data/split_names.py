"""Finds the parts of a data set (train, val, test) by the names of folders, shards or splits.

One rule for all kinds of data: a name means a part if one of its words does, in any case and
spelling, and the others only say that there are images (`TRAIN`, `train2017`, `training_set`,
`ILSVRC2012_img_val`). A part needs its counterpart beside it: a class called `test` stays a class.
"""

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Literal, NamedTuple

from simmim.utils.errors import UserError

Part = Literal["train", "val", "test", "unlabelled"]

_WORDS: dict[str, Part] = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("unlabeled", "unlabelled"), "unlabelled"),
}
_FILLING = {
    *("img", "imgs", "image", "images", "pic", "pics", "picture", "pictures", "photo", "photos"),
    *("set", "data", "dataset", "split", "part", "folder", "dir", "jpg", "jpeg", "png"),
    *("ilsvrc", "imagenet", "coco"),
}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_]+")
_GLUED = re.compile(r"(.{3,}?)(sets?|data|images?|imgs?)$")


class Parts(NamedTuple):
    """The names of the training part and the held-out part."""

    train: str
    held_out: str


def part_of(name: str) -> Part | None:
    """The part that a folder or split of this name would be; None for any other name."""
    words = _words(name)
    parts = [_WORDS[word] for word in words if word in _WORDS]
    others = {word for word in words if word not in _WORDS and not word.isdecimal()}
    return parts[0] if len(parts) == 1 and others <= _FILLING else None


def part_within(name: str) -> Part | None:
    """Like `part_of` for a file, whose name may have other words, too: `cats-train-0001.tar`."""
    parts = {_WORDS[word] for word in _words(name) if word in _WORDS}
    return parts.pop() if len(parts) == 1 else None


def find_parts(names: Sequence[str], place: str | PurePath) -> Parts | None:
    """The names to train on and to hold out (test if there is no val); None unless there are both.

    Raises:
        UserError: several names would do; `place` is where they are, for the message.
    """
    found = {part: [name for name in names if part_of(name) == part] for part in _WORDS.values()}
    trains, held_out = found["train"], found["val"] or found["test"]
    if not trains or not held_out:
        return None
    if len(trains) > 1 or len(held_out) > 1:
        raise UserError(
            f"{place} has {', '.join(sorted((*trains, *held_out)))}, and which of them to train on and "
            f"which to hold out is not clear; name both: data.root={place}/{trains[0]} "
            f"data.val_root={place}/{held_out[0]}"
        )
    return Parts(trains[0], held_out[0])


def _words(name: str) -> list[str]:
    words = [word.lower() for word in _WORD.findall(name)]
    unglued = (_GLUED.match(word) for word in words)
    return [
        match[1] if match and match[1] in _WORDS else word
        for word, match in zip(words, unglued, strict=True)
    ]
