"""One configuration and one run directory for all processes of a run, whoever starts them."""

import json
import signal
import subprocess
import sys
import time

import pytest
from conftest import TINY_DEMO

from simmim.cli.subprocesses import start_name


@pytest.mark.slow
def test_a_sweep_of_two_processes_a_job_leaves_two_runs(tmp_path):
    tiny = [option for option in TINY_DEMO if not option.startswith("trainer=")]
    devices = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp"]
    options = [*tiny, *devices, "trainer.max_steps=1", "seed=0,1", "run_dir=sweep"]
    subprocess.run(
        [sys.executable, "-m", "simmim.pretrain", "-m", *options],
        cwd=tmp_path,
        check=True,
        timeout=1200,
        capture_output=True,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == [
        "multirun.yaml",
        "seed-0",
        "seed-1",
    ]
    for name in ("seed-0", "seed-1"):
        folder = tmp_path / "sweep" / name
        assert json.loads((folder / "summary.json").read_text())["steps"] == 1
        # The second process wrote where the first one did.
        assert [path.name for path in folder.glob("*.log")] == ["pretrain.log"]
        assert "2 × CPU" in (folder / "pretrain.log").read_text()


@pytest.mark.slow
def test_what_torchrun_starts_has_one_name_and_keeps_it_in_a_restart(tmp_path):
    (tmp_path / "ask.py").write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from simmim.cli.subprocesses import start_name\n"
        "rank, attempt = os.environ['RANK'], os.environ['TORCHELASTIC_RESTART_COUNT']\n"
        "time.sleep(1.1 * int(rank))\n"
        "Path(f'{rank}-{attempt}').write_text(start_name())\n"
        "time.sleep(1.1)\n"
        "sys.exit(attempt == '0')\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run(
        [*torchrun, "--nproc-per-node=2", "--max-restarts=1", "ask.py"],
        cwd=tmp_path,
        check=True,
        timeout=1200,
        capture_output=True,
    )
    names = [path.read_text() for path in tmp_path.glob("?-?")]
    assert len(names) >= 3
    assert len(set(names)) == 1


def test_a_requeued_slurm_job_keeps_its_name_and_two_commands_of_it_have_two(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    monkeypatch.setattr(sys, "argv", ["pretrain", "seed=0"])
    first = start_name()
    assert first.startswith("slurm-12-")
    assert start_name() == first
    monkeypatch.setattr(sys, "argv", ["pretrain", "seed=1"])
    assert start_name() != first
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert not start_name().startswith("slurm")


@pytest.mark.slow
def test_a_signal_to_a_sweep_reaches_its_job_and_ends_both_resumable(tmp_path):
    """As SLURM sends it to every process of a job step."""
    tiny = [option for option in TINY_DEMO if not option.startswith("data.train_size")]
    options = [*tiny, "data.train_size=64", "trainer.max_steps=100000", "trainer.max_epochs=-1"]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "simmim.pretrain", "-m", *options, "seed=0,1", "run_dir=sweep"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        log = tmp_path / "sweep" / "seed-0" / "metrics.csv"
        for _ in range(6000):
            if log.exists() and len(log.read_text().splitlines()) > 2:
                break
            time.sleep(0.1)
        sweep.send_signal(signal.SIGUSR1)
        assert sweep.wait(300) == 75
    finally:
        sweep.kill()
    assert (tmp_path / "sweep" / "seed-0" / "checkpoints" / "last.ckpt").exists()
    assert not (tmp_path / "sweep" / "seed-0" / "failure.txt").exists()
    assert not (tmp_path / "sweep" / "seed-1").exists()
