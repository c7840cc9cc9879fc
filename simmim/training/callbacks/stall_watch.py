"""A thread that ends a process which gets no further."""

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from simmim.training.callbacks.rank_board import RankBoard, RankState, answering, describe_ranks

_SECONDS_BETWEEN_LOOKS = 10.0
# For other ranks' files to be there, and for a file system that hangs itself.
_LOOKS_TO_TELL = 3
_SECONDS_TO_TELL = 60.0


class Activity(NamedTuple):
    """What a process is doing.

    Attributes:
        what: in words.
        number: how many came before it; of ranks that work together, who has the fewest is behind.
        seconds: how long it may take.
    """

    what: str
    number: int
    seconds: float


class StallWatch:
    """Looks now and then whether the activity of this process is another one than before.

    If it is not for longer than it may take, on any rank, the process ends: it says why in one line on
    standard error, kills the processes that it started, and leaves with `code`.

    Args:
        activity: of the main thread, now.
        minutes: `guard.stall_minutes`, for the message.
        board: of the other ranks, where there are any.
        checkpoint: where the run would go on from.
        code: of the exit.
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
        # A file system that hangs must not keep the clock from being looked at.
        self._threads = [threading.Thread(target=self._look, name="stall guard", daemon=True)]
        if board is not None:
            self._threads.append(
                threading.Thread(target=self._exchange, name="stall guard's board", daemon=True)
            )

    def start(self) -> None:
        """Starts to look."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Looks no longer."""
        self._is_over.set()
        if self._board is not None:
            self._threads[-1].join(self._pause)
            self._board.leave()

    def _look(self) -> None:
        seen, waited, before = self._activity(), 0.0, time.monotonic()
        while not self._is_over.wait(self._pause):
            now = time.monotonic()
            # While it is stopped, a process waits for nothing.
            waited += min(now - before, 2 * self._pause)
            before = now
            activity = self._activity()
            if activity is not seen:
                seen, waited = activity, 0.0
            self._is_still = waited > activity.seconds
            if self._is_still and self._find_out(activity, waited):
                _leave(self._code)

    def _exchange(self) -> None:
        """Writes down what this rank is doing, and leaves with the others."""
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
        """Says that the run ends, and why; False where this process or another one gets further."""
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
        """Why the run ends; empty where another rank says it, None where it goes on."""
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
        saved = "begins anew, for no checkpoint was written yet"
        if self._checkpoint.exists():
            saved = f"goes on from {self._checkpoint}"
        return f"{who}; the same command {saved}"


def _is_waiting() -> bool:
    """Whether the main thread is in one of PyTorch's functions for several processes."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if f"torch{os.sep}distributed{os.sep}" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def _leave(code: int) -> None:
    """Ends this process and those that it started, without what its main thread would do at the end."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    os._exit(code)
