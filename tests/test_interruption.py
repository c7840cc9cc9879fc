"""A signal: the step is finished, the state written, and the run goes on as if nothing had been."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from conftest import TINY_DEMO, rows
from safetensors.torch import load_file

from simmim.training import run as runs
from simmim.training.callbacks import LearningRate

pytestmark = pytest.mark.unchecked

# Four steps an epoch, each in metrics.csv.
OPTIONS = [*TINY_DEMO, "trainer.max_epochs=2", "trainer.log_every_n_steps=1"]


def sent(number: signal.Signals, at_step: int) -> type[LearningRate]:
    """A callback that has this process sent a signal in the middle of a step, once."""

    class Sender(LearningRate):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            if trainer.global_step == at_step - 1:
                os.kill(os.getpid(), number)

    return Sender


# The fourth step ends an epoch: its validation is made when the run goes on.
@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 2), (signal.SIGINT, 4)])
def test_an_interrupted_run_goes_on_exactly(run, tmp_path, monkeypatch, number, step):
    before = signal.getsignal(number)
    run("pretrain", *OPTIONS, name="whole")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "LearningRate", sent(number, step))
        with pytest.raises(SystemExit) as stopped:
            run("pretrain", *OPTIONS, name="broken")
    signal.signal(number, before)  # the process would have ended here
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert stopped.value.code == 75
    state = torch.load(broken / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")
    assert state["global_step"] == step
    assert [row["step"] for row in rows(broken)] == [str(number) for number in range(step)]
    assert not (broken / "summary.json").exists()
    assert not (broken / "encoder.safetensors").exists()

    assert run("pretrain", *OPTIONS, name="broken")["steps"] == 8
    assert rows(broken) == rows(whole)
    weights, expected = (load_file(folder / "encoder.safetensors") for folder in (broken, whole))
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    """In the middle of a step that does not end, with nothing written."""
    program = f"""
import sys, time
from conftest import compose
from simmim.training import run as runs
from simmim.training.callbacks import LearningRate
from simmim.cli.main import run_stage

class Waiting(LearningRate):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        print("in a step", flush=True)
        time.sleep(600)

runs.LearningRate = Waiting
folder = {str(tmp_path / "run")!r}
run_stage("pretrain", compose("pretrain", [*{OPTIONS!r}, "run_dir=" + folder]), folder)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, **pipes)
    try:
        while "in a step" not in (line := process.stdout.readline()):
            assert line
        process.send_signal(signal.SIGINT)
        while "Ctrl-C again stops at once" not in (line := process.stderr.readline()):
            assert line
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        # A shell makes 130 of it.
        assert process.wait(120) == -signal.SIGINT
    finally:
        process.kill()
    assert not list(tmp_path.glob("run/checkpoints/*.ckpt"))


def test_a_signal_during_the_last_step_ends_nothing(run, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(runs, "LearningRate", sent(signal.SIGTERM, at_step=8))
    assert run("pretrain", *OPTIONS)["steps"] == 8
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_all_ranks_stop_where_one_got_the_signal(tmp_path):
    """The second rank alone is sent it, and with it its loader's worker, which has to go on."""
    folder = tmp_path / "run"
    options = [option for option in OPTIONS if "num_workers" not in option]
    command = [
        *(sys.executable, "-m", "simmim.pretrain", *options, "trainer.devices=2"),
        *("trainer.max_epochs=1000", "data.num_workers=1", "logger=csv", f"run_dir={folder}"),
        *("trainer.check_val_every_n_epoch=1000", "data.train_size=32"),
    ]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    children = []
    try:
        end = time.monotonic() + 600
        while not (folder / "metrics.csv").exists() or len(rows(folder)) < 3:
            assert first.poll() is None and time.monotonic() < end, first.communicate()
            time.sleep(0.1)
        children = psutil.Process(first.pid).children(recursive=True)
        (second,) = (
            child
            for child in children
            if child.environ().get("LOCAL_RANK") == "1" and child.ppid() == first.pid
        )
        for process in [second, *second.children()]:
            process.send_signal(signal.SIGUSR1)
        output, _ = first.communicate(timeout=1200)
        assert first.returncode == 75, output
        assert "interrupted after step" in output
        assert psutil.wait_procs(children, timeout=1200)[1] == []
    finally:
        for process in [first, *children]:
            if isinstance(process, subprocess.Popen) or process.is_running():
                process.kill()
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")
    assert [int(row["step"]) for row in rows(folder)] == list(range(state["global_step"]))
    assert not (folder / "summary.json").exists()
