"""How long a run waits for its data, and what may help."""

import time
from collections.abc import Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from simmim.utils.failure_messages import explained_workers

# A run that waits for a smaller share of its time would hardly be faster.
MUCH = 0.1

Item = TypeVar("Item")


class TimedLoader(DataLoader[Item]):
    """A DataLoader that sums up how long the run waits for its batches.

    Attributes:
        waited_seconds: total of all epochs so far; without workers, the whole loading time.
    """

    waited_seconds = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches."""
        batches: Iterator[Any] = super().__iter__()
        while True:
            started = time.perf_counter()
            with explained_workers(self.num_workers):
                batch = next(batches, None)
            self.waited_seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch


def describe_wait(share: float, *, num_workers: int, most_workers: int) -> str:
    """One line on the share of a run's time that it waited for data, with advice if that is much.

    `most_workers` is the number of workers per device for which this machine has cores.
    """
    line = f"waited for data {share:.1%} of the time"
    if share <= MUCH:
        return line
    if num_workers < most_workers:
        way_out = f"use data.num_workers={most_workers}, it is {num_workers}"
    else:
        way_out = (
            f"data.num_workers={num_workers} takes all cores, so store JPEGs of about twice "
            "model.image_size (scripts/make_shards.py DIR OUT --max-side N), or use more cores"
        )
    return f"{line}: {way_out}"
