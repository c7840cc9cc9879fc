"""Failures of a machine (out of memory, loader workers), reported with what to do about them."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from simmim.utils.errors import UserError

SHARED_MEMORY = "/dev/shm"
# Exit code of a loader worker that could not hand over a batch (EX_OSERR).
CANNOT_HAND_OVER = 71

# With fewer bytes free, shared memory counts as full.
_FULL = 1 << 20
# PyTorch's messages if a batch does not fit into shared memory.
_UNSHARED = re.compile(
    r"unable to (?:allocate|mmap|open|resize|write).*(?:shared memory|</torch_)|"
    r"could not (?:unlink|resize) the shared memory|Bus error|shared memory \(shm\)"
)
_MOST_FILES = re.compile(r"received \d+ items of ancdata|Too many open files")


class SharedMemory(NamedTuple):
    """The file system through which loader workers hand over batches: its free and total bytes."""

    free: int
    total: int

    @classmethod
    def find(cls) -> "SharedMemory | None":
        """This machine's shared memory; None if it has none, as on macOS."""
        if not Path(SHARED_MEMORY).is_dir():
            return None
        status = os.statvfs(SHARED_MEMORY)
        return cls(status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize)

    def describe(self) -> str:
        """`41 of its 64 MB are free`."""
        return f"{show_megabytes(self.free)} of its {show_megabytes(self.total)} are free"


def show_megabytes(count: int) -> str:
    """`64 MB` (mebibytes, as Docker counts), `0.1 MB`."""
    size = count / 2**20
    return f"{size:,.0f} MB" if size >= 10 else f"{size:.1f} MB"


@contextmanager
def explained_failures(*, batch_size: int, num_workers: int, accumulation: int) -> Iterator[None]:
    """Turns an out-of-memory error, or a loader worker that ended, into a one-line UserError.

    Raises:
        UserError: with options that need less memory.
    """
    try:
        with explained_workers(num_workers, "The same command goes on from the last checkpoint"):
            yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(error, batch_size, accumulation) from error
    except RuntimeError as error:
        message = str(error)
        if "can't allocate memory" in message or "not enough memory" in message:
            raise _out_of_memory(error, batch_size, accumulation) from error
        raise


@contextmanager
def explained_workers(num_workers: int | None = None, then: str = "") -> Iterator[None]:
    """Turns a loader worker that ended, or could not hand over a batch, into a one-line UserError.

    Raises:
        UserError: with options that need less memory; `then` says what the next start does.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        if isinstance(error, UserError):
            raise
        reason = _why_worker_ended(error)
        if reason is None:
            raise
        then = f". {then}" if then else ""
        workers = (
            "now (data.num_workers)" if num_workers is None else f"data.num_workers={num_workers}"
        )
        raise UserError(
            f"{reason}; use fewer than {workers}, or a smaller data.batch_size{then}"
        ) from error


def _why_worker_ended(error: BaseException) -> str | None:
    """Why a loader worker ended; None if the error is about something else."""
    # If several workers ended, the original error is the cause.
    message = f"{error.__cause__ or ''}\n{error}"
    if _MOST_FILES.search(message):
        return (
            "the loader workers have too many files open; raise the limit (ulimit -n 65536) before the "
            "run"
        )
    is_unshared = _UNSHARED.search(message) or f"exit code {CANNOT_HAND_OVER}" in message
    is_unnamed = isinstance(error, OSError) and error.filename is None
    memory = SharedMemory.find()
    is_full = memory is not None and memory.free < _FULL
    if is_unshared or (is_unnamed and error.errno == errno.ENOSPC and is_full):  # type: ignore[attr-defined]
        told = f", of which {memory.describe()} now" if memory else ""
        return (
            f"a loader worker could not hand over a batch through {SHARED_MEMORY}{told}; give it more "
            "(docker run --shm-size=8g, or --ipc=host)"
        )
    if signal := re.search(r"killed by signal: (\w+)", message):
        found = f"killed by signal {signal[1]}"
    elif ended := re.search(r"DataLoader worker \(pid\S* [\d, ]+\) (.+?)(?:\.|$)", message):
        found = ended[1]
    elif "Pin memory thread exited unexpectedly" in message:
        found = "and the thread that pins its batches"
    else:
        return None
    return (
        f"a loader worker ended ({found}), most often for want of memory or of shared memory "
        f"({SHARED_MEMORY})"
    )


def _out_of_memory(error: BaseException, batch_size: int, accumulation: int) -> UserError:
    halves = ""
    if batch_size > 1:
        halves = (
            f"data.batch_size={batch_size // 2} trainer.accumulate_grad_batches={2 * accumulation} "
            "(as many images a step), or "
        )
    first_line = (str(error) or type(error).__name__).splitlines()[0]
    return UserError(
        f"out of memory with data.batch_size={batch_size} ({first_line}); use {halves}"
        "model.checkpoint_blocks=all model.sequential_attention=1, which take time instead. The same "
        "command with these goes on from the last checkpoint"
    )
