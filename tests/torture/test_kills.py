"""Killed again and again, a run ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import TINY, TINY_DEMO, pack
from PIL import Image

from torture.jobs import assert_equal_ends, plan_deaths, samples, start

pytestmark = pytest.mark.torture

KILLS = 20
# Four steps an epoch, a checkpoint every second step, 66 steps for twenty deaths.
SAVED = [
    *("trainer.max_steps=66", "trainer.log_every_n_steps=1", "trainer.max_epochs=1000"),
    *("save.every_n_steps=2", "reconstructions.count=0", "model.drop_path_rate=0.2"),
]
LABELLED = [
    *(option for option in SAVED if not option.startswith("reconstructions")),
    *(option for option in TINY_DEMO if not option.startswith("model.")),
    *("model=swinv2_nano", *(option for option in TINY if "model." in option)),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures of two classes; the same in shards beside them."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(20):
        path = folder / "files" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 36, 3), np.uint8)).save(path)
    pack(folder / "files", folder / "shards", 5)
    return folder


def survive(stage: str, options: list[str], folder: Path, seed: int) -> None:
    """Runs twice: once through, and once killed `KILLS` times."""
    assert start(stage, options, folder / "whole") == 0, (folder / "whole/output.txt").read_text()
    killed = 0
    for death in plan_deaths(KILLS, seed):
        code = start(stage, options, folder / "killed", death)
        output = (folder / "killed" / "output.txt").read_text()
        assert code == -signal.SIGKILL, f"{death}: {output}"
        killed += 1
    assert killed == KILLS
    assert start(stage, options, folder / "killed") == 0, output
    assert_equal_ends(folder / "killed", folder / "whole")
    left = sorted(path.name for path in (folder / "killed" / "checkpoints").iterdir())
    assert left == ["best.ckpt", "last.ckpt", "step-00000064.ckpt", "step-00000066.ckpt"]


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("data", ["demo", "imagefolder", "webdataset"])
def test_pretraining_survives(data: str, workers: int, pictures: Path, tmp_path: Path) -> None:
    options = {
        "demo": TINY_DEMO,
        "imagefolder": [*TINY, "data=imagefolder", f"data.root={pictures}/files"],
        "webdataset": [*TINY, "data=webdataset", f"data.root={pictures}/shards"],
    }[data]
    if data != "demo":
        options = [*options, "data.val_ratio=0.2"]
    seed = 3 * ["demo", "imagefolder", "webdataset"].index(data) + workers
    survive("pretrain", [*options, *SAVED, f"data.num_workers={workers}"], tmp_path, seed)


@pytest.mark.parametrize("workers", [0, 2])
def test_fine_tuning_with_mixup_and_an_average_survives(workers: int, tmp_path: Path) -> None:
    options = [*LABELLED, "ema.decay=0.9", "mixing.mixup=0.8", f"data.num_workers={workers}"]
    survive("finetune", options, tmp_path, seed=20 + workers)


def test_accumulated_steps_survive(tmp_path: Path) -> None:
    options = [*TINY_DEMO, *SAVED, "trainer.accumulate_grad_batches=2", "data.train_size=32"]
    survive("pretrain", options, tmp_path, seed=30)


def test_two_processes_survive_as_torchrun_starts_them_again(tmp_path: Path) -> None:
    """One of them is killed, twice; torchrun ends the other and starts both."""
    options = [option for option in TINY_DEMO if not option.startswith("trainer=")]
    options += ["trainer.accelerator=cpu", "data.batch_size=2", "data.train_size=32"]
    options += ["trainer.max_steps=400", "trainer.max_epochs=1000", "trainer.log_every_n_steps=1"]
    options += ["save.every_n_steps=20", "reconstructions.count=0", "logger=csv"]
    options += ["trainer.check_val_every_n_epoch=5"]

    def launch(folder: Path, restarts: int) -> "subprocess.Popen[str]":
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *(f"--max_restarts={restarts}", "--monitor_interval=0.5", "-m", "torture.recorded"),
            *(*options, f"run_dir={folder}"),
        ]
        folder.mkdir()
        environment = os.environ | {"SIMMIM_SAMPLES": str(folder / "samples.txt")}
        # Processes that are started again would be given the addresses of those before.
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        output = (folder / "output.txt").open("w")
        return subprocess.Popen(
            command, cwd=tmp_path, stdout=output, stderr=output, text=True, env=environment
        )

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert launch(whole, 0).wait(300) == 0, (whole / "output.txt").read_text()
    agent = launch(killed, 3)
    for at_step, rank in ((100, 1), (250, 0)):
        end = time.monotonic() + 240
        while not (killed / "samples.txt").exists() or f"{at_step} 0" not in samples(killed):
            assert agent.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        (victim,) = (
            child
            for child in psutil.Process(agent.pid).children()
            if child.environ().get("RANK") == str(rank)
        )
        victim.kill()
    assert agent.wait(300) == 0, (killed / "output.txt").read_text()
    assert "going on from" in (killed / "output.txt").read_text()
    assert_equal_ends(killed, whole)
