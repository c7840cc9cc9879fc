"""`skipped.jsonl`: the images that a run could not read, each once, whichever process found it."""

import json
import logging
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from simmim.utils.errors import UserError

SKIPPED = "skipped.jsonl"

# Further ones are in the file only.
_MOST_WARNINGS = 10

log = logging.getLogger(__name__)


class SkippedImages:
    """A run's list, shared through the file by its loader workers and ranks, and when it is resumed.

    A line is written while the file is locked, after reading the lines that others have written, so
    that each image is listed once. Without a `path`, each process keeps its own list.

    Attributes:
        most: number of images that may be unreadable; one more stops the run.
        of: number of all images.
        path: of the list.
        excluded: names that do not count.
    """

    def __init__(
        self,
        most: int,
        of: int,
        *,
        path: Path | None = None,
        excluded: Collection[str] = frozenset(),
    ) -> None:
        self.most = most
        self.of = of
        self.path = path
        self.excluded = excluded
        self._names: set[str] = set()
        self._read_to = 0
        self._warnings = 0

    def note(self, name: str, reason: str, epoch: int) -> None:
        """Adds an image to the list, unless it is there.

        Raises:
            UserError: there are more unreadable images than allowed.
        """
        entry = {"image": name, "reason": reason, "epoch": epoch}
        is_new = self._append(entry) if name not in self._names else False
        if is_new:
            self._warn(f"skipped: cannot read image {name} ({reason})")
        if len(self._names) > self.most:
            where = f"see {self.path}" if self.path else f"the last is {name}: {reason}"
            raise UserError(
                f"{len(self._names):,} of {self.of:,} images could not be read, which is more than "
                f"data.max_bad_fraction allows ({self.most:,}); {where}; mend them and remove that "
                "list, leave them out with data.exclude=LIST (to go on: and resume_force=true), or "
                "allow more"
            )

    def count(self) -> int:
        """How many images of the run, in all its processes, could not be read."""
        if self.path is not None and self.path.exists():
            with self.path.open("rb") as file:
                self._catch_up(file)
        return len(self._names)

    def _append(self, entry: dict[str, Any]) -> bool:
        """Adds an entry to the list; returns whether it was new to all processes."""
        if self.path is None:
            self._names.add(entry["image"])
            return True
        try:
            with self.path.open("ab+") as file:
                _lock(file.fileno())
                is_cut_off = self._catch_up(file)
                if entry["image"] in self._names:
                    return False
                line = json.dumps(entry) + "\n"
                # Ends a line that a killed process left incomplete, so that this one can be read.
                file.write(("\n" + line if is_cut_off else line).encode())
                file.flush()
                self._read_to = file.tell()
        except OSError as error:
            self._warn(f"{self.path} cannot be written ({error})")
        self._names.add(entry["image"])
        return True

    def _catch_up(self, file: Any) -> bool:
        """Reads the lines that were added since; returns whether the last one is incomplete."""
        file.seek(self._read_to)
        added = file.read()
        whole, _, rest = added.rpartition(b"\n")
        for line in whole.splitlines():
            name = _image_of(line)
            if name is not None and name not in self.excluded:
                self._names.add(name)
        self._read_to += len(added) - len(rest)
        return bool(rest)

    def _warn(self, message: str) -> None:
        self._warnings += 1
        if self._warnings <= _MOST_WARNINGS:
            log.warning(message)
        if self._warnings == _MOST_WARNINGS and self.path is not None:
            log.warning(f"further images that cannot be read are in {self.path} alone")

    def __getstate__(self) -> dict[str, Any]:
        """The state for a worker, which reads the file itself."""
        return (
            self.__dict__
            | {"_names": set(self._names) if self.path is None else set()}
            | ({} if self.path is None else {"_read_to": 0})
        )


def read_names(path: str | Path | None) -> frozenset[str]:
    """The images that a list names: a `skipped.jsonl`, or the `bad.jsonl` of `simmim.check`.

    Raises:
        UserError: the list cannot be read.
    """
    if path is None:
        return frozenset()
    try:
        lines = Path(path).expanduser().read_bytes().splitlines()
    except OSError as error:
        raise UserError(
            f"data.exclude={path} cannot be read ({error.strerror}); use a skipped.jsonl of a run, "
            "or the bad.jsonl of python -m simmim.check"
        ) from error
    names = [_image_of(line) for line in lines if line.strip()]
    if None in names:
        raise UserError(
            f'line {names.index(None) + 1} of data.exclude={path} is not like {{"image": "PATH"}}'
        )
    return frozenset(name for name in names if name is not None)


def require_named(path: str | None, excluded: Collection[str], names: Iterable[str]) -> None:
    """Raises UserError if an exclusion list has none of these names: it is of other data."""
    other = None
    for name in names:
        if name in excluded:
            return
        other = other or name
    if excluded and other is not None:
        raise UserError(
            f"data.exclude={path} excludes nothing: of its {len(excluded):,} names, as "
            f"{min(excluded)}, none is among the data's, as {other}; make it again with "
            "python -m simmim.check with this data.root, or leave data.exclude out"
        )


def _image_of(line: bytes) -> str | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None  # cut off
    name = entry.get("image") if isinstance(entry, dict) else None
    return name if isinstance(name, str) else None


def _lock(descriptor: int) -> None:
    """Locks a file for this process until it is closed, if the file system supports locks."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except (ImportError, OSError):
        log.debug("this file system has no locks")
