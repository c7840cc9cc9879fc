"""The lock of a run directory: a second process that would write to it stops with an error."""

import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import IO, Any

import psutil

from simmim.utils.console import say
from simmim.utils.errors import UserError

_NAME = ".writer"
# For a launcher that restarts a killed run while its last process is still ending.
_PATIENCE_SECONDS = 5.0
# Locks of this process: opening and closing such a file again would release its lock.
_held: set[Path] = set()
_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}


class RunDirLock:
    """Locks a run directory from its construction to `release`, or to the end of the process.

    The system releases the lock however the process ends. It belongs to this process alone, not to
    the loader workers that may outlive it for a while. If the file system has no locks, the content
    of the file says which process writes.

    Raises:
        UserError: another process writes there, or the directory cannot be written to.
    """

    def __init__(self, run_dir: str | Path, patience: float = _PATIENCE_SECONDS) -> None:
        self.path = Path(run_dir, _NAME)
        self._file: IO[str] | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+")
        except OSError as error:
            raise UserError(
                f"run_dir={run_dir} cannot be written to ({error.strerror}); use another run_dir"
            ) from error
        try:
            self._hold(run_dir, patience)
        except BaseException:
            self._file.close()
            raise
        _held.add(self.path.resolve())
        self._file.truncate(0)
        self._file.write(json.dumps(_this_process()))
        self._file.flush()

    def release(self) -> None:
        """Releases the lock, so that others can write."""
        if self._file is not None and not self._file.closed:
            self._file.truncate(0)
            self._file.close()
            _held.discard(self.path.resolve())

    def _hold(self, run_dir: str | Path, patience: float) -> None:
        assert self._file is not None
        end = time.monotonic() + patience
        while True:
            try:
                # Not flock: loader workers of a killed run would keep its lock.
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                has_locks = error.errno not in _UNSUPPORTED
                writer = _read(self.path)
                if not has_locks and not _may_be_writing(writer):
                    say(f"{run_dir} has no file locks; {self.path} says who writes there")
                    return
                if time.monotonic() < end:
                    time.sleep(0.2)
                    continue
                way_out = "" if has_locks else f", or remove {self.path} if it is gone"
                raise UserError(
                    f"run_dir={run_dir} is being written to by {_describe(writer)}; let it finish or "
                    f"stop it{way_out}, or use another run_dir"
                ) from error
            return


def writer_is_gone(run_dir: str | Path) -> bool:
    """Whether a process of this machine wrote there and ended without releasing its lock.

    A process of another machine cannot be checked from here: it may still be writing.
    """
    path = Path(run_dir, _NAME)
    if path.resolve() in _held:
        return False
    writer = _read(path)
    return writer.get("host") == socket.gethostname() and not _is_alive(writer)


def _read(path: Path) -> dict[str, Any]:
    try:
        writer = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return writer if isinstance(writer, dict) else {}


def _this_process() -> dict[str, Any]:
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "process": process.pid,
        "started": process.create_time(),
        "job": os.environ.get("SLURM_JOB_ID"),
    }


def _may_be_writing(writer: dict[str, Any]) -> bool:
    """Whether the process in a lock file may still be alive; assumed so on another machine."""
    if not writer:
        return False
    # SLURM restarts a job only after it has ended.
    job = os.environ.get("SLURM_JOB_ID")
    if job is not None and writer.get("job") == job:
        return False
    if writer.get("host") != socket.gethostname():
        return True
    return writer.get("process") != os.getpid() and _is_alive(writer)


def _is_alive(writer: dict[str, Any]) -> bool:
    """Whether that process is still alive on this machine, not a later one with its number."""
    try:
        return psutil.Process(int(writer["process"])).create_time() == writer["started"]
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def _describe(writer: dict[str, Any]) -> str:
    if not writer:
        return "another run"
    return f"another run (process {writer.get('process')} on {writer.get('host')})"
