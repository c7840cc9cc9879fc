"""Divides a machine's cores and shared memory among the ranks of a run.

Loader workers hand over their batches through files in /dev/shm. If these do not fit, a worker dies
or waits forever; so their size is computed before the first worker starts.
"""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from simmim.utils.errors import UserError
from simmim.utils.failure_messages import SHARED_MEMORY, SharedMemory, show_megabytes

# Batches that each worker prefetches. With fewer, the run waits for batches that take longer.
PREFETCH = 4
_MOST_WORKERS = 8
# Bytes; files in shared memory take whole pages.
_PAGE = 4096
# Bytes for locks and other small objects.
_RESERVE = 1 << 20


class Loading(NamedTuple):
    """The number of loader workers of a rank, and of batches that each of them prefetches."""

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
    """Cores that this process may use; a container (`--cpus`) may allow fewer than are visible."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    try:
        time, period = Path(quota).read_text().split()
        return min(cores, max(1, int(time) // int(period)))
    except (OSError, ValueError):  # no such file, or no limit ("max")
        return cores


def cores_of_rank(ranks: int, environment: Mapping[str, str] = os.environ) -> int:
    """A rank's share of the available cores; all of them if srun has bound the rank to its own."""
    cores = available_cores()
    allotted = environment.get("SLURM_CPUS_ON_NODE", "")
    if allotted.isdecimal():
        if cores < int(allotted):
            return cores
        cores = int(allotted)
    return max(1, cores // ranks)


def default_workers(ranks: int = 1) -> int:
    """One worker fewer than a rank's share of cores, from 1 to 8."""
    return max(1, min(_MOST_WORKERS, cores_of_rank(ranks) - 1))


def shared_bytes(batch_size: int, image_bytes: int) -> int:
    """Shared memory that a batch takes, in bytes: its images, labels and indices."""
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
    """The workers and prefetched batches that fit into shared `memory` (None: there is none).

    First the prefetch is reduced; if `num_workers` is None, then also the number of workers, down
    to 0. `loaders` is the number of loaders that prefetch at the same time.

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
        # One batch is in use, and the next one is on its way.
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
    """The settings that are tried, the best first."""
    for prefetch in (PREFETCH, PREFETCH // 2):
        yield Loading(workers, prefetch)
    for fewer in range(workers, -1, -1):
        yield Loading(fewer, 1)
