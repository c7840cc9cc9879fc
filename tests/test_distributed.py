"""Two processes on the CPU share each batch, and the result is that of one process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY_DEMO
from safetensors.torch import load_file

from simmim.processes import start_name


def train(folder: Path, *options: str) -> Path:
    tiny = [option for option in TINY_DEMO if not option.startswith("trainer=")]
    subprocess.run(
        [
            *(sys.executable, "-m", "simmim.pretrain", *tiny, "trainer.accelerator=cpu", *options),
            *("trainer.max_steps=4", "data.val_size=7", f"run_dir={folder}"),
        ],
        cwd=folder.parent,
        check=True,
        timeout=300,
        capture_output=True,
    )
    return folder


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_train_as_one_does(tmp_path, accumulation):
    """Masks, order and augmentation included; seven held-out images do not divide by two."""
    accumulate = f"trainer.accumulate_grad_batches={accumulation}"
    options = [accumulate, "data.train_size=32"]
    two = train(tmp_path / "two", *options, "trainer.devices=2", "data.batch_size=4")
    one = train(tmp_path / "one", *options, "trainer.devices=1", "data.batch_size=8")
    weights = [load_file(folder / "encoder.safetensors") for folder in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=0)
    metrics = [
        json.loads((folder / "summary.json").read_text())["metrics"] for folder in (one, two)
    ]
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-5)


def test_a_sweep_of_two_processes_a_job_leaves_two_runs(tmp_path):
    tiny = [option for option in TINY_DEMO if not option.startswith("trainer=")]
    devices = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp"]
    options = [*tiny, *devices, "trainer.max_steps=1", "seed=0,1", "run_dir=sweep"]
    subprocess.run(
        [sys.executable, "-m", "simmim.pretrain", "-m", *options],
        cwd=tmp_path,
        check=True,
        timeout=300,
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


def test_what_torchrun_starts_has_one_name_and_keeps_it_in_a_restart(tmp_path):
    (tmp_path / "ask.py").write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from simmim.processes import start_name\n"
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
        timeout=300,
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
