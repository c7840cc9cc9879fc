"""What a rank takes of its machine: cores for workers, shared memory for what they have ready."""

import errno
import os
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch.utils.data import Dataset

from simmim.data import datamodule, demo, host_resources
from simmim.data.datamodule import start_worker
from simmim.data.host_resources import (
    Loading,
    default_workers,
    fit_loading,
    launched_ranks,
    shared_bytes,
)
from simmim.data.loader import TimedLoader
from simmim.utils import failure_messages
from simmim.utils.errors import UserError
from simmim.utils.failure_messages import SharedMemory, explained_failures, explained_workers

MB = 2**20


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_resources, "available_cores", lambda: 32)
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)


@pytest.mark.parametrize(("ranks", "workers"), [(1, 8), (4, 7), (8, 3), (16, 1), (64, 1)])
def test_ranks_share_the_cores_of_their_node(cores: None, ranks: int, workers: int) -> None:
    assert default_workers(ranks) == workers


def test_a_container_s_share_of_the_cores_counts(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    every = host_resources.available_cores(quota)
    for text, cores in (("max 100000", every), ("150000 100000", 1), ("50000 100000", 1)):
        quota.write_text(text)
        assert host_resources.available_cores(quota) == cores


def test_cores_that_srun_bound_a_rank_to_are_its_own(
    cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "64")
    assert default_workers(8) == 8
    # Not bound: what the job has of a larger machine is shared.
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "16")
    assert default_workers(8) == 1
    assert default_workers(4) == 3


def test_who_started_the_ranks_tells_how_many_a_node_has() -> None:
    assert launched_ranks({}) == 1
    assert launched_ranks({"LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "16"}) == 8
    step = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"}
    assert launched_ranks(step) == 4
    assert (
        launched_ranks({"SLURM_NTASKS_PER_NODE": "4"}) == 1
    )  # a job whose run srun has not started


def open_demo(**options: Any) -> datamodule.ImageDataModule:
    given = {"image_size": 32, "train_size": 8, "val_size": 4, "batch_size": 4} | options
    return demo(train_transform=torch.nn.Identity(), **given)


def test_a_run_s_ranks_are_counted_and_asked_workers_are_kept(cores: None) -> None:
    images = open_demo()
    images.share_node(8)
    assert images.train_dataloader().num_workers == 3
    images = open_demo(num_workers=5)
    images.share_node(8)
    assert images.val_dataloader().num_workers == 5


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_memory_is_pinned_for_cuda_alone(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A GPU that is there and not used pins nothing."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    images = open_demo(num_workers=0)
    assert not images.val_dataloader().pin_memory
    images.trainer = Mock(global_rank=0, world_size=1, num_devices=1)
    images.trainer.strategy.root_device = torch.device(kind)
    assert images.val_dataloader().pin_memory == (kind == "cuda")


def test_a_batch_takes_whole_pages() -> None:
    assert shared_bytes(1, 3 * 64 * 64) == 12288 + 2 * 4096
    assert shared_bytes(128, 3 * 192 * 192) == 128 * 3 * 192 * 192 + 2 * 4096


def test_less_is_ready_ahead_where_shared_memory_is_small(cores: None) -> None:
    def fit(workers: int | None, free: int, **share: int) -> Loading:
        return fit_loading(workers, 10 * MB, SharedMemory(free * MB, free * MB), **share)

    assert fit(8, 1000) == (8, 4)
    assert fit(8, 341) == (8, 4)
    assert fit(8, 340) == (8, 2)
    assert fit(8, 150) == (8, 1)
    assert fit(4, 341, ranks=2) == (4, 2)
    assert fit(8, 341, loaders=2) == (8, 2)
    # By default there are fewer, too; none needs nothing.
    assert fit(None, 64) == (4, 1)
    assert fit(None, 10) == (0, 1)
    assert fit(0, 0) == (0, 4)
    assert fit_loading(8, 10 * MB, None) == (8, 4)


def test_workers_that_do_not_fit_are_refused_with_what_would() -> None:
    with pytest.raises(UserError) as caught:
        fit_loading(8, 14 * MB, SharedMemory(64 * MB, 64 * MB))
    assert str(caught.value) == (
        "data.num_workers=8 needs 141 MB of /dev/shm for batches, and 64 MB of its 64 MB are free; use "
        "data.num_workers=2, a smaller data.batch_size, or more of it (docker run --shm-size=478m, or "
        "--ipc=host)"
    )


def test_a_data_module_fits_its_loaders_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = SharedMemory(MB + 16 * 4096, 64 * MB)
    monkeypatch.setattr(SharedMemory, "find", lambda: small)
    images = open_demo(num_workers=1, batch_size=1)
    assert images.train_dataloader().prefetch_factor == 2
    assert (
        "1 loader workers, each with 2 batches ready, in place of 1 with 4: /dev/shm" in caplog.text
    )
    monkeypatch.setattr(SharedMemory, "find", lambda: SharedMemory(76 * 1024, 76 * 1024))
    with pytest.raises(
        UserError, match=r"of /dev/shm for batches, and 0\.1 MB of its 0\.1 MB are free"
    ):
        open_demo(num_workers=1).share_node(1)


class Unsendable(Dataset[Any]):
    """Images that a worker reads, and cannot hand over."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return lambda: index


def test_a_batch_that_cannot_be_handed_over_ends_the_run_in_one_line() -> None:
    """Multiprocessing prints the error and drops the batch: its reader would wait for ever."""
    loader = TimedLoader(
        Unsendable(), num_workers=1, collate_fn=list, worker_init_fn=Initialise(), timeout=120
    )
    with pytest.raises(UserError, match="could not hand over a batch through /dev/shm"):
        next(iter(loader))


class Initialise:
    def __call__(self, worker: int) -> None:
        start_worker((), worker)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "DataLoader worker (pid 9) is killed by signal: Bus error. It is",
            "hand over .* /dev/shm",
        ),
        (
            "Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: unable to allocate "
            "shared memory(shm) for file </torch_8_1_0>: No space left on device (28)",
            "hand over a batch through /dev/shm.*data.num_workers=3",
        ),
        ("unable to write to file </torch_8_1_0>: No space left on device (28)", "hand over"),
        ("DataLoader worker (pid 9) is killed by signal: Killed. ", "killed by signal Killed"),
        ("DataLoader worker (pid(s) 9) exited unexpectedly", r"ended \(exited unexpectedly\)"),
        ("Pin memory thread exited unexpectedly", "pins its batches"),
        ("received 0 items of ancdata", "ulimit -n"),
    ],
)
def test_what_becomes_of_workers_is_one_line(message: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught, explained_workers(3):
        raise RuntimeError(message)
    assert "\n" not in str(caught.value)
    whole = explained_failures(batch_size=4, num_workers=3, accumulation=1)
    with pytest.raises(UserError, match=r"goes on from the last checkpoint$"), whole:
        raise RuntimeError(message)


def test_a_full_disk_is_no_full_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for free, kind in ((0, UserError), (64 * MB, OSError)):
        monkeypatch.setattr(
            failure_messages.SharedMemory, "find", lambda free=free: SharedMemory(free, free)
        )
        with pytest.raises(kind), explained_workers(1):
            raise full
    with pytest.raises(RuntimeError, match=r"^of another kind$"), explained_workers(1):
        raise RuntimeError("of another kind")
    with pytest.raises(UserError, match=re.escape("mine")), explained_workers(1):
        raise UserError("mine")


def test_shared_memory_is_found_where_there_is_any() -> None:
    memory = SharedMemory.find()
    assert (memory is not None) == Path("/dev/shm").is_dir()
    assert memory is None or 0 <= memory.free <= memory.total
