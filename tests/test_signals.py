"""Signals of the user's own choice reach what they are for, and leave alone what is still needed."""

import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import TINY_DEMO

from simmim.training import run as runs
from simmim.training.callbacks import LearningRate

SWEEP = """
import sys
from pathlib import Path
from omegaconf import OmegaConf
from simmim.cli import subprocesses
from simmim.training.run_dir.config_record import Composed
sys.executable = {job!r}
config = OmegaConf.create({{"run_dir": ".", "stop_signals": ["SIGINT", "SIGALRM"]}})
subprocesses.run_apart("pretrain", Composed(Path("x"), config, [], config))
"""


def test_a_sweep_passes_on_what_stop_signals_names(tmp_path):
    job = tmp_path / "job"
    job.write_text(
        '#!/bin/sh\ntrap "echo saved > saved; exit 75" ALRM; touch started\n'
        "while :; do sleep 0.1; done\n"
    )
    job.chmod(0o755)
    sweep = subprocess.Popen([sys.executable, "-c", SWEEP.format(job=str(job))], cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    # Not SIGHUP, which nohup has all that it starts ignore.
    sweep.send_signal(signal.SIGALRM)
    assert sweep.wait(300) == 75
    assert (tmp_path / "saved").exists()


def test_loader_workers_outlive_what_stop_signals_names(run, tmp_path, monkeypatch):
    """As SLURM sends it to all processes of a job."""

    class Sender(LearningRate):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            if trainer.global_step == 1:
                workers = [child for child in psutil.Process().children() if child not in others]
                assert workers
                for process in [*workers, psutil.Process()]:
                    process.send_signal(signal.SIGHUP)
                time.sleep(0.2)
                assert all(worker.status() != psutil.STATUS_ZOMBIE for worker in workers)

    # Such as a logger's service that an earlier test in this process has left.
    others = psutil.Process().children()
    before = signal.getsignal(signal.SIGHUP)
    monkeypatch.setattr(runs, "LearningRate", Sender)
    options = [option for option in TINY_DEMO if "num_workers" not in option]
    options += ["data.num_workers=1", "stop_signals=[SIGHUP]", "trainer.max_steps=8"]
    try:
        with pytest.raises(SystemExit) as stopped:
            run("pretrain", *options, "logger=csv", "reconstructions.count=0")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert stopped.value.code == 75
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
