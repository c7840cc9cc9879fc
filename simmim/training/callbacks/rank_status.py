"""Exchanges the state of a run's ranks through small files in the run directory."""

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_PREFIX = ".ranks-"


class RankState(NamedTuple):
    """The state that a rank last wrote.

    Attributes:
        looks: how often its watching thread has looked; if it no longer grows, the rank is gone.
        number, what: those of its current `Activity`.
        is_waiting: whether its main thread is in a collective, as far as Python can tell.
        is_still: whether its activity has exceeded its time limit.
    """

    looks: int
    number: int
    what: str
    is_waiting: bool
    is_still: bool = False


class RankBoard:
    """A folder in which each rank writes its state, and reads the states of the others.

    Files that cannot be written or read are ignored. Rank 0 removes the folders of earlier
    launches.

    Args:
        name: identifies this launch, the same on all its ranks.
    """

    def __init__(self, run_dir: Path, name: str, rank: int, world_size: int) -> None:
        self._folder = run_dir / f"{_PREFIX}{name}"
        self.rank = rank
        self.world_size = world_size
        if rank == 0:
            for left in run_dir.glob(f"{_PREFIX}*"):
                shutil.rmtree(left, ignore_errors=True)
            with suppress(OSError):
                self._folder.mkdir()

    def write(self, state: RankState) -> None:
        """Writes what this rank is doing."""
        beside = self._folder / f"{self.rank}.new"
        with suppress(OSError):
            beside.write_text(json.dumps(state))
            beside.replace(self._file(self.rank))

    def read(self) -> dict[int, RankState]:
        """The last state of each rank, without ranks whose file cannot be read."""
        states = {}
        for rank in range(self.world_size):
            try:
                states[rank] = RankState(*json.loads(self._file(rank).read_text()))
            except (OSError, ValueError, TypeError):
                continue
        return states

    def claim(self) -> bool:
        """Claims the right to end the run; True on the first rank, or if nothing can be written."""
        try:
            self._claimed.touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError:
            pass
        return True

    def is_claimed(self) -> bool:
        """Whether a rank has claimed to end the run."""
        return self._claimed.exists()

    def leave(self) -> None:
        """Rank 0 removes the folder; without it, the other ranks write nothing more."""
        if self.rank == 0:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, rank: int) -> Path:
        return self._folder / f"{rank}.json"

    @property
    def _claimed(self) -> Path:
        return self._folder / "ended"


def answering(before: Mapping[int, RankState], now: Mapping[int, RankState]) -> list[int]:
    """Ranks whose `looks` changed between `before` and `now`; the others are gone or stopped."""
    return [
        rank
        for rank, state in sorted(now.items())
        if rank not in before or before[rank].looks != state.looks
    ]


def describe_ranks(
    before: Mapping[int, RankState], now: Mapping[int, RankState], world_size: int
) -> str:
    """Describes which ranks did not arrive and what each was doing, grouped by state.

    `rank 1 did not arrive (waiting for data after step 3); rank 0 arrived (training step 4, waiting
    for others)`. If all ranks are at the same activity, those outside a collective are the late
    ones.
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
    """Names ranks: `rank 3`, `ranks 0-6, 8`."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"
