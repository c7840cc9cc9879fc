"""What a process may take of its machine, which the ranks of a run share: cores and shared memory.

Loader workers hand their batches on through files in /dev/shm. Where these do not fit, a worker dies,
or waits for ever; so they are counted before the first one starts.
"""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from simmim.utils.errors import UserError
from simmim.utils.failures import SHARED_MEMORY, SharedMemory, show_megabytes

# Batches that each worker has ready. With fewer, those that take longer are waited for.
PREFETCH = 4
_MOST_WORKERS = 8
# Files of shared memory are whole pages.
_PAGE = 4096
# For locks, and what else is small.
_RESERVE = 1 << 20


class Loading(NamedTuple):
    """Loader workers of a rank, and batches that each of them has ready."""

    num_workers: int
    prefetch: int


def launched_ranks(environment: Mapping[str, str] = os.environ) -> int:
    """Processes that torchrun or srun started on this machine for this run; 1 without these."""
    if "LOCAL_WORLD_SIZE" in environment:
        return int(environment["LOCAL_WORLD_SIZE"])
    if "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment:
        nodes = int(environment.get("SLURM_STEP_NUM_NODES", "1"))
        return max(1, int(environment["SLURM_STEP_NUM_TASKS"]) // nodes)
    return 1


def available_cores(quota: str | Path = "/sys/fs/cgroup/cpu.max") -> int:
    """Cores that this process may use; of those that it sees, a container (`--cpus`) may give fewer."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    try:
        time, period = Path(quota).read_text().split()
        return min(cores, max(1, int(time) // int(period)))
    except (OSError, ValueError):  # no such file, or no limit ("max")
        return cores


def cores_of_rank(ranks: int, environment: Mapping[str, str] = os.environ) -> int:
    """A rank's share of the cores that it may use, all of them where srun bound it to its own."""
    cores = available_cores()
    allotted = environment.get("SLURM_CPUS_ON_NODE", "")
    if allotted.isdecimal():
        if cores < int(allotted):
            return cores
        cores = int(allotted)
    return max(1, cores // ranks)


def default_workers(ranks: int = 1) -> int:
    """A worker for each core of a rank's share but one, from 1 to 8."""
    return max(1, min(_MOST_WORKERS, cores_of_rank(ranks) - 1))


def shared_bytes(batch_size: int, image_bytes: int) -> int:
    """Shared memory that a batch takes: its images, labels and places."""
    tensors = (batch_size * image_bytes, 8 * batch_size, 8 * batch_size)
    return sum(math.ceil(size / _PAGE) * _PAGE for size in tensors)


def fit_loading(
    num_workers: int | None,
    batch_bytes: int,
    memory: SharedMemory | None,
    *,
    ranks: int = 1,
    loaders: int = 1,
) -> Loading:
    """Workers and what they have ready, as far as it fits into shared memory (None: there is none).

    First less is ready ahead. Of `num_workers` None there are also fewer, down to none. `loaders` have
    their batches ready at the same time.

    Raises:
        UserError: `num_workers` do not fit.
    """
    most = default_workers(ranks) if num_workers is None else num_workers
    if memory is None or most == 0:
        return Loading(most, PREFETCH)

    def needed(loading: Loading) -> int:
        if loading.num_workers == 0:
            return 0
        ready = loaders * loading.num_workers * loading.prefetch
        # One is computed on, the next one on its way.
        return ranks * (ready + 2) * batch_bytes + _RESERVE

    fitting = [loading for loading in _smaller(most) if needed(loading) <= memory.free]
    if num_workers is None or fitting[0].num_workers == num_workers:
        return fitting[0]
    whole = Loading(most, PREFETCH)
    raise UserError(
        f"data.num_workers={most}{f' of {ranks} processes' if ranks > 1 else ''} needs "
        f"{show_megabytes(needed(Loading(most, 1)))} of {SHARED_MEMORY} for batches, and "
        f"{memory.describe()}; use data.num_workers={fitting[0].num_workers}, a smaller "
        f"data.batch_size, or more of it (docker run --shm-size={needed(whole) // 2**20 + 1}m, or "
        "--ipc=host)"
    )


def _smaller(workers: int) -> Iterator[Loading]:
    """What is tried, the best first."""
    for prefetch in (PREFETCH, PREFETCH // 2):
        yield Loading(workers, prefetch)
    for fewer in range(workers, -1, -1):
        yield Loading(fewer, 1)
