"""Writes files completely or not at all: under a temporary name, flushed to the disk, then renamed.

Some files contain file names, which may be any bytes.
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
    """Yields a temporary path to write to, and renames it to `path` at the end of the block.

    If the block fails, the temporary file is removed, and an earlier file at `path` is unchanged.
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
    """JSON without escapes for non-ASCII text, except bytes of a file name that are not UTF-8."""
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    return _SURROGATES.sub(lambda byte: f"\\u{ord(byte[0]):04x}", text)


def append(path: Path, text: str) -> None:
    """Appends text to a file: all of it, or nothing if there is no room (OSError)."""
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", newline="") as file:
            file.write(text)
    except OSError:
        if path.exists():
            os.truncate(path, before)
        raise


def flush(path: Path) -> None:
    """Flushes a file, or all files of a folder, to the disk (fsync)."""
    if path.is_dir():
        for entry in path.rglob("*"):
            if entry.is_file():
                _sync(entry)
    _sync(path)


def flush_entry(path: Path) -> None:
    """Flushes the directory entry of a new or renamed file to the disk (fsync)."""
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
