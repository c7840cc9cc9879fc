"""A run that gets no further, as where a rank or a loader hangs, ends and can be resumed."""

import json
import os
import shutil
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytorch_lightning as pl
from jaxtyping import Float
from torch import Tensor

from simmim.callbacks.guard import Guard
from simmim.callbacks.interruption import exit_code
from simmim.errors import UserError

# What may take long and is no stall: reading and writing checkpoints, the first step of what is
# compiled, what follows a validation.
LONG_SECONDS = 3600.0
# Loader workers start, and kernels are chosen.
_FIRST_SECONDS = 60.0
_SECONDS_BETWEEN_LOOKS = 10.0
# For other ranks' files to be there, and for a file system that hangs itself.
_LOOKS_TO_TELL = 3
_SECONDS_TO_TELL = 60.0
_BOARD = ".ranks-"


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


class RankState(NamedTuple):
    """What a rank last wrote of itself.

    Attributes:
        looks: how often its watching thread has looked; one that does not look again is not there.
        number, what: of its activity.
        is_waiting: whether its main thread is in a collective, as far as Python can tell.
        is_still: whether its activity has taken longer than it may.
    """

    looks: int
    number: int
    what: str
    is_waiting: bool
    is_still: bool = False


class StallGuard(pl.Callback):
    """Ends a run of which no rank gets further: a step, a batch of a validation, or waiting for data.

    A thread in each process watches it, for its main thread may be in a collective that never returns
    because another rank is gone, stopped, or waits for a loader that hangs. The ranks tell each other
    what they are doing by small files in the run directory; where they do not share one, or there is
    one process, each knows of itself alone. Who ends the run says in one line which ranks did not
    arrive and what each was doing; all then leave with the exit code of an interruption, and their
    loader workers with them. Time in which a process is stopped (SIGSTOP) does not count.

    Args:
        minutes: how long a step may take. To read or write a checkpoint, to compile, and what follows a
            validation may take an hour more, the first step and batch a minute (None: anything may
            take for ever).
        is_compiling: whether the first steps compile.

    Raises:
        UserError: no time at all.
    """

    def __init__(
        self, run_dir: str | Path, minutes: float | None = 30.0, *, is_compiling: bool = False
    ) -> None:
        if minutes is not None and not 0 < minutes < float("inf"):
            raise UserError(f"guard.stall_minutes {minutes} is not positive; use 30, or null")
        self.run_dir = Path(run_dir)
        self.minutes = minutes
        self.is_compiling = is_compiling
        self._activity = Activity("the start", 0, LONG_SECONDS)
        self._first_of = {"training", "validation"}
        self._watch: _Watch | None = None

    @property
    def longest_wait(self) -> timedelta | None:
        """Longer than a rank may wait for others; None: not known."""
        if self.minutes is None:
            return None
        return timedelta(minutes=self.minutes, seconds=LONG_SECONDS + 10 * 60)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Starts to watch."""
        if self.minutes is None:
            return
        self._do("the start", LONG_SECONDS)
        board = None
        if trainer.world_size > 1:
            # Of another start, whose ranks are gone, nothing is read.
            name = trainer.strategy.broadcast(uuid.uuid4().hex)
            board = _Board(
                self.run_dir / f"{_BOARD}{name}", trainer.global_rank, trainer.world_size
            )
        self._watch = _Watch(
            lambda: self._activity,
            self.minutes,
            board,
            self.run_dir / "checkpoints" / "last.ckpt",
            exit_code(trainer),
        )
        self._watch.start()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first batch is loaded."""
        self._wait_for_data("training", f"before step {trainer.global_step + 1}")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is there."""
        self._compute("training", f"training step {trainer.global_step + 1}")

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Float[Tensor, ""]
    ) -> None:
        """The forward pass is over."""
        self._go_on()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The backward pass is over."""
        self._go_on()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """The next batch is loaded, unless a validation begins."""
        self._first_of.discard("training")
        self._wait_for_data("training", f"after step {trainer.global_step}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Held-out images are loaded."""
        self._wait_for_data("validation", "of the validation")

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The batch is there."""
        self._compute("validation", f"validation batch {batch_idx + 1}")

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The next batch is loaded, if there is one."""
        self._first_of.discard("validation")
        if batch_idx + 1 >= trainer.num_val_batches[dataloader_idx]:
            # Neighbours are looked for, pictures drawn and pages written.
            self._do("the end of a validation", LONG_SECONDS)
        else:
            self._wait_for_data("validation", f"of the validation after batch {batch_idx + 1}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training goes on, if there is some to come."""
        self._wait_for_data("training", f"after step {trainer.global_step}")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writing takes as long as it takes."""
        self._do("saving a checkpoint", LONG_SECONDS)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """There may be a last checkpoint to write."""
        self._do("the end of training", LONG_SECONDS)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Watches no longer."""
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Watches no longer."""
        self._stop()

    def _stop(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def _wait_for_data(self, kind: str, where: str) -> None:
        self._do(f"waiting for data {where}", _FIRST_SECONDS if kind in self._first_of else 0.0)

    def _compute(self, kind: str, what: str) -> None:
        first = LONG_SECONDS if self.is_compiling else _FIRST_SECONDS
        self._do(what, first if kind in self._first_of else 0.0)

    def _do(self, what: str, more_seconds: float) -> None:
        if self.minutes is not None:
            seconds = self.minutes * 60 + more_seconds
            self._activity = Activity(what, self._activity.number + 1, seconds)

    def _go_on(self) -> None:
        before = self._activity
        self._activity = before._replace(number=before.number + 1)


class Guards(NamedTuple):
    """What `guard` names: of a step's numbers, and of its time."""

    numbers: Guard
    time: StallGuard


def create_guards(
    run_dir: str | Path,
    max_skipped: int = 10,
    spike_factor: float | None = 3.0,
    stall_minutes: float | None = 30.0,
    *,
    is_compiling: bool = False,
) -> Guards:
    """`Guard` with `max_skipped` and `spike_factor`, and `StallGuard`.

    It is given `stall_minutes`, and `is_compiling` where the first steps compile.
    """
    return Guards(
        Guard(run_dir, max_skipped, spike_factor),
        StallGuard(run_dir, stall_minutes, is_compiling=is_compiling),
    )


class _Watch:
    """Looks now and then whether the activity of this process is another one than before."""

    def __init__(
        self,
        activity: Callable[[], Activity],
        minutes: float,
        board: "_Board | None",
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
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
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


class _Board:
    """A folder where each rank writes what it is doing. What cannot be written or read is not known."""

    def __init__(self, folder: Path, rank: int, world_size: int) -> None:
        self._folder = folder
        self.rank = rank
        self.world_size = world_size
        if rank == 0:
            for left in folder.parent.glob(f"{_BOARD}*"):
                shutil.rmtree(left, ignore_errors=True)
            with suppress(OSError):
                folder.mkdir()

    def write(self, state: RankState) -> None:
        beside = self._folder / f"{self.rank}.new"
        with suppress(OSError):
            beside.write_text(json.dumps(state))
            beside.replace(self._file(self.rank))

    def read(self) -> dict[int, RankState]:
        states = {}
        for rank in range(self.world_size):
            try:
                states[rank] = RankState(*json.loads(self._file(rank).read_text()))
            except (OSError, ValueError, TypeError):
                continue
        return states

    def claim(self) -> bool:
        """Whether this is the first rank that ends the run, or none can know."""
        try:
            self._claimed.touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError:
            pass
        return True

    def is_claimed(self) -> bool:
        return self._claimed.exists()

    def leave(self) -> None:
        """The first rank takes the folder away; without it, others write no more."""
        if self.rank == 0:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, rank: int) -> Path:
        return self._folder / f"{rank}.json"

    @property
    def _claimed(self) -> Path:
        return self._folder / "ended"


def answering(before: Mapping[int, RankState], now: Mapping[int, RankState]) -> list[int]:
    """Ranks that have looked between `before` and `now`; others are gone, or stopped."""
    return [
        rank
        for rank, state in sorted(now.items())
        if rank not in before or before[rank].looks != state.looks
    ]


def describe_ranks(
    before: Mapping[int, RankState], now: Mapping[int, RankState], world_size: int
) -> str:
    """Says who did not arrive and what each was doing, ranks that did the same together.

    `rank 1 did not arrive (waiting for data after step 3); rank 0 arrived (training step 4, waiting for
    others)`. Where ranks came equally far, those did not arrive that wait for no other.
    """
    there = {rank: now[rank] for rank in answering(before, now)}
    silent = set(range(world_size)) - set(there)
    furthest = max((state.number for state in there.values()), default=0)
    late = {rank for rank, state in there.items() if state.number < furthest}
    if not late and not silent and any(state.is_waiting for state in there.values()):
        late = {rank for rank, state in there.items() if not state.is_waiting}

    alike: dict[str, list[int]] = defaultdict(list)
    for rank in [*sorted(silent), *sorted(late), *sorted(set(there) - late)]:
        state = now.get(rank)
        if rank in silent:
            last = "" if state is None else f" (last: {state.what})"
            does = f"did not arrive and gave no sign{last}"
        elif rank in late:
            does = f"did not arrive ({there[rank].what})"
        else:
            waits = ", waiting for others" if there[rank].is_waiting else ""
            does = f"arrived ({there[rank].what}{waits})"
        alike[does].append(rank)
    return "; ".join(f"{_name(ranks)} {does}" for does, ranks in alike.items())


def _name(ranks: list[int]) -> str:
    """`rank 3`, `ranks 0-6, 8`."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


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
