"""Files that are whole or not there: written beside their place, flushed to the disk, renamed.

Names of files stand in some, whose bytes may be any.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"

_SURROGATES = re.compile("[\ud800-\udfff]")


@contextmanager
def written_beside(path: str | Path) -> Iterator[Path]:
    """Gives a path to write to, and puts what stands there in its place at the end of the block.

    Nothing is left of it where the block fails: what was there before stays as it was.
    """
    path = Path(path)
    beside = path.with_name(path.name + PARTIAL)
    try:
        yield beside
        flush(beside)
        os.replace(beside, path)
    except BaseException:
        remove(beside)
        raise
    flush_entry(path)


def as_json(content: Any, indent: int | None = 2) -> str:
    """JSON in letters as they are, but for the bytes of a file name that are not UTF-8: escaped."""
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    return _SURROGATES.sub(lambda byte: f"\\u{ord(byte[0]):04x}", text)


def append(path: Path, text: str) -> None:
    """Adds to the end of a file: all of it, or nothing where there is no room (OSError)."""
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", newline="") as file:
            file.write(text)
    except OSError:
        if path.exists():
            os.truncate(path, before)
        raise


def flush(path: Path) -> None:
    """Has the disk hold the file, or all files of the folder."""
    if path.is_dir():
        for entry in path.rglob("*"):
            if entry.is_file():
                _sync(entry)
    _sync(path)


def flush_entry(path: Path) -> None:
    """Has the disk hold the name of a file that was put there."""
    _sync(path.parent)


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # folders cannot be opened everywhere
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems flush no folders
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)
