"""A run that gets no further ends, says who did not arrive, and goes on from its checkpoint."""

import subprocess
from pathlib import Path

import psutil
import pytest
from conftest import TINY_DEMO
from started import run_started

from simmim.training.callbacks import StallGuard
from simmim.training.callbacks.rank_status import RankState, describe_ranks
from simmim.utils.errors import UserError

OPTIONS = [
    *(option for option in TINY_DEMO if not option.startswith("trainer=")),
    *("trainer.accelerator=cpu", "trainer.max_epochs=2", "reconstructions.count=0"),
    *("logger=csv", "save.every_n_steps=1", "save.monitor=null", "run_dir=run"),
]


SCRIPT = str(Path(__file__).parents[2] / "hangs.py")


def pretrain(
    folder: Path, hang: str, *options: str, processes: int = 1
) -> "subprocess.CompletedProcess[str]":
    """A run in which something hangs."""
    own = {"HANG": hang}
    typed = (*OPTIONS, *options)
    return run_started(SCRIPT, *typed, cwd=folder, environment=own, processes=processes)


def left_in(folder: Path) -> list[psutil.Process]:
    """Processes that do not end."""
    there = [
        process
        for process in psutil.process_iter(["cwd"])
        if process.info["cwd"] == str(folder) and process.status() != psutil.STATUS_ZOMBIE
    ]
    left: list[psutil.Process] = psutil.wait_procs(there, timeout=120)[1]
    return left


def test_a_loader_that_hangs_ends_the_run_and_its_workers(tmp_path: Path) -> None:
    done = pretrain(tmp_path, "loader", "data.num_workers=2", "guard.stall_minutes=0.15")
    assert done.returncode == 75, done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("error: the run got no further for 0.")
    assert said.endswith(
        "minutes (guard.stall_minutes=0.15) and ends: waiting for data after step 4; the same command "
        f"goes on from {tmp_path}/run/checkpoints/last.ckpt"
    )
    assert not left_in(tmp_path)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_a_rank_that_does_not_arrive_is_named_and_the_run_goes_on_after(tmp_path: Path) -> None:
    options = ["data.batch_size=2", "trainer.strategy=ddp"]
    done = pretrain(tmp_path, "step", *options, "guard.stall_minutes=0.15", processes=2)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "got no further" in line]
    assert len(said) == 1
    assert said[0].endswith(
        "and ends: rank 1 did not arrive (training step 3); rank 0 arrived (training step 3); "
        f"the same command goes on from {tmp_path}/run/checkpoints/last.ckpt"
    )
    assert not left_in(tmp_path)
    again = pretrain(tmp_path, "nothing", *options, processes=2)
    assert again.returncode == 0, again.stderr
    assert "going on from" in again.stderr + again.stdout
    assert not [*(tmp_path / "run").glob(".ranks-*")]


def test_a_first_step_and_a_checkpoint_may_take_longer(tmp_path: Path) -> None:
    """Six seconds each, where a step may take five."""
    done = pretrain(
        tmp_path,
        "long",
        "guard.stall_minutes=0.08",
        "trainer.max_steps=2",
        "save.every_n_steps=null",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (
            {0: (5, 9, "training step 3", True), 1: (5, 8, "waiting for data after step 2", False)},
            {0: (8, 9, "training step 3", True), 1: (8, 8, "waiting for data after step 2", False)},
            "rank 1 did not arrive (waiting for data after step 2); "
            "rank 0 arrived (training step 3, waiting for others)",
        ),
        (
            dict.fromkeys((0, 1, 2, 4), (5, 9, "training step 3", True)),
            {rank: (5 + (rank < 4), 9, "training step 3", True) for rank in (0, 1, 2, 4)},
            "rank 3 did not arrive and gave no sign; "
            "rank 4 did not arrive and gave no sign (last: training step 3); "
            "ranks 0-2 arrived (training step 3, waiting for others)",
        ),
        (
            {},
            {rank: (5, 9, "training step 3", rank != 2) for rank in range(5)},
            "rank 2 did not arrive (training step 3); "
            "ranks 0-1, 3-4 arrived (training step 3, waiting for others)",
        ),
        (
            {},
            dict.fromkeys(range(5), (5, 9, "validation batch 1", False)),
            "ranks 0-4 arrived (validation batch 1)",
        ),
    ],
)
def test_who_is_behind_gone_or_waits_for_no_one_did_not_arrive(
    before: dict[int, tuple[int, int, str, bool]],
    now: dict[int, tuple[int, int, str, bool]],
    said: str,
) -> None:
    states = [
        {rank: RankState(*state) for rank, state in states.items()} for states in (before, now)
    ]
    world_size = max([*before, *now]) + 1
    assert describe_ranks(*states, world_size) == said


def test_no_time_at_all_is_refused(tmp_path: Path) -> None:
    for minutes in (0.0, -1.0, float("nan")):
        with pytest.raises(
            UserError, match=r"guard.stall_minutes .* is not positive; use 30, or null"
        ):
            StallGuard(tmp_path, minutes)
    StallGuard(tmp_path, None)
