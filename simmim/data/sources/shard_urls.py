"""Finds tar shards by patterns, and reads the description beside them."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simmim.data.split_names import Part, find_parts, part_of, part_within
from simmim.utils.console import say
from simmim.utils.errors import UserError
from simmim.utils.globs import find_matches

# Beside shards of scripts/make_shards.py: names of the classes, and how many images each shard holds.
DESCRIPTION = "dataset.json"

_SHOWN = 5


def find_shards(patterns: str | Sequence[str], option: str = "data.root") -> list[str]:
    """Paths and URLs of shards, in order, from folders, globs, brace lists, or several of them.

    Raises:
        UserError: a pattern matches nothing, or files of a brace list are missing.
    """
    require_webdataset()
    from braceexpand import braceexpand

    found: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        # Of a command, only braces are expanded.
        is_list = "{" in pattern and not Path(pattern).exists()
        names = list(braceexpand(pattern)) if is_list else [pattern]
        missing = []
        for name in names:
            if is_url(name):
                found.append(name)
                continue
            path = os.path.expanduser(name)  # noqa: PTH111
            if Path(path).is_dir():
                # macOS stores a file's metadata in `._NAME`.
                paths = Path(path).glob("*.[tT][aA][rR]")
                matches = sorted(str(found) for found in paths if not found.name.startswith("."))
            else:
                matches = [path] if Path(path).exists() else sorted(find_matches(path))
            found += matches
            if not matches:
                missing.append(name)
        if len(missing) == len(names):
            raise UserError(
                f"{option} {pattern} matches no shard; use a folder of .tar files, "
                "a glob such as 'DIR/*.tar', or 'DIR/{000..123}.tar'"
            )
        if missing:
            shown = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
            raise UserError(
                f"{option} {pattern}: {len(missing)} of {len(names)} shards do not exist ({shown}); "
                "restore them, or narrow the range"
            )
    repeated = len(found) - len(set(found))
    if repeated:
        raise UserError(f"{option} names {repeated} shards more than once; name each once")
    return found


def sort_roots(
    root: str | Sequence[str], val_root: str | Sequence[str] | None
) -> tuple[str | Sequence[str], str | Sequence[str] | None]:
    """Both roots as given or, if `root` has parts such as `train` and `val`, these."""
    if val_root is None and isinstance(root, str) and not is_url(root):
        folder = Path(root).expanduser()
        if folder.is_dir():
            names = sorted(path.name for path in folder.iterdir() if path.is_dir())
            if parts := find_parts(names, folder):
                say(f"parts of {root}: {parts.train} to train on, {parts.held_out} held out")
                return str(folder / parts.train), str(folder / parts.held_out)
    return root, val_root


def sort_shards(shards: Sequence[str]) -> tuple[list[str], list[str]]:
    """Training and held-out shards, if the names of all say which they are; else all and none.

    For example `imagenet-train-0001.tar` and `imagenet-validation-0001.tar`, in one folder or
    several.
    """
    named: dict[Part | None, list[str]] = {}
    for shard in shards:
        *_, folder, name = ("", *shard.split("/"))
        part = None if shard.startswith("pipe:") else part_within(name) or part_of(folder)
        named.setdefault(part, []).append(shard)
    train, held_out = named.get("train"), named.get("val") or named.get("test")
    if None in named or not train or not held_out:
        return list(shards), []
    say(
        f"by their names, {len(train)} shards are to train on and {len(held_out)} are held out, as "
        f"{held_out[0]}"
    )
    return train, held_out


def is_url(name: str) -> bool:
    """Whether a shard is streamed: a URL or a command, not a path."""
    return "://" in name or name.startswith("pipe:")


def require_webdataset() -> Any:
    """The `webdataset` library; UserError if it is not installed."""
    try:
        import webdataset
    except ImportError:
        raise UserError(
            'data=webdataset needs the webdataset library; pip install "simmim[webdataset]"'
        ) from None
    return webdataset


def describe(folder: Path) -> dict[str, Any]:
    """The dataset.json of scripts/make_shards.py beside the shards; empty if there is none."""
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); correct or remove it") from error
    if not isinstance(description, dict):
        raise UserError(f"{path} does not hold an object; correct or remove it")
    return description
