"""Two processes on the CPU share each batch, and the result is that of one process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY_DEMO
from safetensors.torch import load_file


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
