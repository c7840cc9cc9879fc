"""A thread that ends a process that makes no progress."""

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from simmim.training.callbacks.rank_status import RankBoard, RankState, answering, describe_ranks

_SECONDS_BETWEEN_LOOKS = 10.0
# How long to wait for other ranks' files, and for a file system that may hang itself.
_LOOKS_TO_TELL = 3
_SECONDS_TO_TELL = 60.0


class Activity(NamedTuple):
    """What a process is doing.

    Attributes:
        what: a description.
        number: how many activities came before it; the rank with the fewest is behind.
        seconds: its time limit.
    """

    what: str
    number: int
    seconds: float


class StallWatch:
    """Checks at intervals whether the activity of this process has changed.

    If every rank has exceeded the time limit of its activity, the process ends: it prints the
    reason in one line on standard error, kills its child processes, and exits with `code`.

    Args:
        activity: returns the current activity of the main thread.
        minutes: `guard.stall_minutes`, for the message.
        board: the states of all ranks; None for a single process.
        checkpoint: the checkpoint that the run would resume from.
        code: the exit code.
    """

    def __init__(
        self,
        activity: Callable[[], Activity],
        minutes: float,
        board: RankBoard | None,
        checkpoint: Path,
        code: int,
    ) -> None:
        self._activity = activity
        self._minutes = minutes
        self._board = board
        self._checkpoint = checkpoint
        self._code = code
        self._pause = min(_SECONDS_BETWEEN_LOOKS, minutes * 60 / 10)
        self._is_still = False
        self._is_over = threading.Event()
        # Files have a thread of their own: a file system that hangs must not stop the clock.
        self._threads = [threading.Thread(target=self._look, name="stall guard", daemon=True)]
        if board is not None:
            self._threads.append(
                threading.Thread(target=self._exchange, name="stall guard's board", daemon=True)
            )

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stops the threads."""
        self._is_over.set()
        if self._board is not None:
            self._threads[-1].join(self._pause)
            self._board.leave()

    def _look(self) -> None:
        seen, waited, before = self._activity(), 0.0, time.monotonic()
        while not self._is_over.wait(self._pause):
            now = time.monotonic()
            # Time in which the process was stopped (SIGSTOP) does not count.
            waited += min(now - before, 2 * self._pause)
            before = now
            activity = self._activity()
            if activity is not seen:
                seen, waited = activity, 0.0
            self._is_still = waited > activity.seconds
            if self._is_still and self._find_out(activity, waited):
                _leave(self._code)

    def _exchange(self) -> None:
        """Writes this rank's state to the board, and exits once another rank has ended the run."""
        assert self._board is not None
        looks = 0
        while not self._is_over.wait(self._pause):
            looks += 1
            activity = self._activity()
            self._board.write(
                RankState(looks, activity.number, activity.what, _is_waiting(), self._is_still)
            )
            if self._board.is_claimed() and not self._is_over.wait(self._pause):
                _leave(self._code)

    def _find_out(self, activity: Activity, waited: float) -> bool:
        """Prints why the run ends; False if this or another process has made progress after all."""
        found: list[str | None] = []
        told = f"the run got no further for {waited / 60:.2g} minutes"
        told += f" (guard.stall_minutes={self._minutes:g}) and ends: "
        apart = threading.Thread(target=lambda: found.append(self._explain(activity)), daemon=True)
        apart.start()
        apart.join(_SECONDS_TO_TELL + _LOOKS_TO_TELL * self._pause)
        if found and found[0] is None:
            return False
        why = found[0] if found else f"{activity.what}, and the run directory does not answer"
        if why:
            os.write(2, f"error: {told}{why}\n".encode())
        return True

    def _explain(self, activity: Activity) -> str | None:
        """Why the run ends; empty if another rank reports it, None if the run continues."""
        who = activity.what
        if self._board is not None:
            before = self._board.read()
            time.sleep(_LOOKS_TO_TELL * self._pause)
            now = self._board.read()
            if any(not now[rank].is_still for rank in answering(before, now)):
                return None
            who = describe_ranks(before, now, self._board.world_size)
        if self._activity() is not activity or self._is_over.is_set():
            return None
        if self._board is not None and not self._board.claim():
            return ""
        saved = "starts again from the beginning, because no checkpoint was written yet"
        if self._checkpoint.exists():
            saved = f"goes on from {self._checkpoint}"
        return f"{who}; the same command {saved}"


def _is_waiting() -> bool:
    """Whether the main thread is in a function of torch.distributed."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if f"torch{os.sep}distributed{os.sep}" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def _leave(code: int) -> None:
    """Kills the child processes and exits at once, without any cleanup by the main thread."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    os._exit(code)
