"""Recipes of scripts/slurm and sweeps by submitit on a real SLURM: tests/slurm/start.sh starts it."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY
from PIL import Image
from safetensors.torch import load_file

RECIPES = sorted((Path(__file__).parent.parent / "scripts" / "slurm").glob("*.sbatch"))
RECIPE = next(path for path in RECIPES if path.stem == "single_node")
STATE = Path(os.environ.get("SIMMIM_SLURM_STATE", "/tmp/simmim-slurm"))
STEPS = 200
OPTIONS = [
    *(option for option in TINY if "num_workers" not in option),
    *("trainer.devices=auto", "data=imagefolder", "data.num_workers=1", "logger=csv"),
    *("trainer.max_epochs=null", f"trainer.max_steps={STEPS}", "trainer.log_every_n_steps=1"),
    *("trainer.check_val_every_n_epoch=null", "trainer.val_check_interval=100"),
    "reconstructions.count=0",
]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """What commands of this SLURM need; skips where none answers."""
    # Those of a job that this very session runs in would be taken for ours.
    values = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "PMI_")) or name == "SLURM_CONF"
    }
    if (STATE / "slurm.conf").exists():
        values["SLURM_CONF"] = str(STATE / "slurm.conf")
    values["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{values['PATH']}"
    values["OMP_NUM_THREADS"] = "1"
    asked = ["sinfo", "--noheader", "--partition=test", "--format=%T"]
    answer = (
        subprocess.run(asked, env=values, capture_output=True, text=True, check=False, timeout=60)
        if shutil.which("sinfo")
        else None
    )
    if answer is None or answer.returncode or not answer.stdout.strip():
        pytest.skip("no SLURM of ours answers; run tests/slurm/start.sh")
    return values


class Job:
    """A recipe that was submitted with two tasks."""

    def __init__(self, folder: Path, images: Path, environment: dict[str, str]) -> None:
        self.environment = environment
        self.run_dir = folder / "run"
        self.log = folder / "job.log"
        folder.mkdir()
        self.number = self.ask(
            *("sbatch", "--parsable", "--partition=test", "--ntasks-per-node=2"),
            *("--gpus-per-node=0", "--cpus-per-task=1", f"--output={self.log}"),
            *(str(RECIPE), *OPTIONS),
            IMAGES=str(images),
            RUN_DIR=str(self.run_dir),
        ).strip()

    def ask(self, *command: str, **variables: str) -> str:
        done = subprocess.run(
            command,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait(self, reached: Callable[[], bool]) -> None:
        end = time.monotonic() + 300
        while not reached():
            state = self.ask("scontrol", "show", "job", self.number)
            over = any(f"JobState={end}" in state for end in ("COMPLETED", "FAILED", "CANCELLED"))
            if over and reached():
                return
            if over or time.monotonic() > end:
                log = self.log.read_text() if self.log.exists() else "no log"
                pytest.fail(f"{state}\n{log}")
            time.sleep(0.2)

    def finish(self) -> None:
        self.wait(lambda: "JobState=COMPLETED" in self.ask("scontrol", "show", "job", self.number))

    def losses(self) -> list[tuple[int, str]]:
        """Step and loss, row by row."""
        path = self.run_dir / "metrics.csv"
        if not path.exists():
            return []
        with path.open() as file:
            return [
                (int(row["step"]), row["train/loss"])
                for row in csv.DictReader(file)
                if row.get("train/loss")
            ]


@pytest.fixture
def submit(
    tmp_path: Path, images: Path, environment: dict[str, str]
) -> Iterator[Callable[[str], Job]]:
    """Submits the recipe; what is left of it after the test is cancelled."""
    jobs = []

    def submit_named(name: str) -> Job:
        jobs.append(Job(tmp_path / name, images, environment))
        return jobs[-1]

    yield submit_named
    for job in jobs:
        job.ask("scancel", "--quiet", "--full", job.number)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(40):
        pixels = torch.randint(256, (40, 40, 3), generator=torch.Generator().manual_seed(number))
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{number}.png")
    return folder


@pytest.mark.slow
def test_a_job_that_is_preempted_and_requeued_ends_as_one_that_was_not(submit, tmp_path):
    """By the signal that recipes ask for, then by `scontrol requeue`, in one run directory."""
    whole = submit("whole")
    whole.finish()
    summary = json.loads((whole.run_dir / "summary.json").read_text())
    assert summary["steps"] == STEPS
    assert "effective batch 8 = 2 devices" in whole.log.read_text()
    assert [path.name for path in whole.run_dir.parent.iterdir() if path.is_dir()] == ["run"]

    job = submit("broken")
    job.wait(lambda: len(job.losses()) > 5)
    job.ask("scancel", "--signal=USR1", job.number)
    job.wait(lambda: "interrupted by SIGUSR1" in job.log.read_text())
    assert not (job.run_dir / "summary.json").exists()
    reached = len(job.losses())
    job.wait(lambda: len(job.losses()) > reached + 5)
    job.ask("scontrol", "requeue", job.number)
    job.wait(lambda: "interrupted by SIGTERM" in job.log.read_text())
    job.finish()

    assert job.log.read_text().count("going on from") == 2
    assert "Restarts=2" in job.ask("scontrol", "show", "job", job.number)
    assert [path.name for path in job.run_dir.parent.iterdir() if path.is_dir()] == ["run"]
    assert [step for step, _ in job.losses()] == list(range(STEPS))
    assert job.losses() == whole.losses()
    weights, expected = (load_file(each.run_dir / "encoder.safetensors") for each in (job, whole))
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    # Lightning's own way with SLURM left nothing.
    assert not list(tmp_path.rglob("hpc_ckpt*"))


@pytest.mark.slow
def test_a_sweep_through_submitit_ends_with_a_summary_a_job(tmp_path, environment):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "simmim.pretrain", "--multirun", "seed=0,1,2", *TINY),
            *("data.train_size=16", "data.val_size=6", "trainer.max_steps=2", "logger=csv"),
            *("hydra/launcher=submitit_slurm", "hydra.launcher.partition=test"),
            *("hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=10"),
            f"run_dir={tmp_path / 'sweep'}",
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summaries = sorted((tmp_path / "sweep").glob("*/summary.json"))
    assert [path.parent.name for path in summaries] == ["seed-0", "seed-1", "seed-2"]
    assert {json.loads(path.read_text())["steps"] for path in summaries} == {2}
    gather = Path(__file__).parent.parent / "scripts" / "gather_sweep.py"
    subprocess.run([sys.executable, gather, tmp_path / "sweep"], check=True, timeout=120)
    table = (tmp_path / "sweep" / "sweep.md").read_text()
    assert len([line for line in table.splitlines() if line.startswith(("| 0 |", "| 1 |"))]) >= 2
    assert "| 2 |" in table


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_slurm_understands_a_recipe(recipe, environment):
    """But for the GPUs and nodes that this one lacks."""
    fewer = ("--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0")
    done = subprocess.run(
        ["sbatch", "--test-only", "--partition=test", *fewer, str(recipe)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "in partition test" in done.stderr


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_what_there_is_and_requeues_what_was_interrupted(recipe, tmp_path):
    """Without SLURM: `srun` composes the command instead of running it, and says "interrupted"."""
    words = {"srun": 'while [[ $1 == --* ]]; do shift; done; "$@" --cfg job; exit 75'}
    words["scontrol"] = 'echo "scontrol $*"'
    for name, script in words.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    job = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "12"}
    done = subprocess.run(
        ["bash", str(recipe)],
        env=os.environ | job | {"PATH": path, "IMAGES": "/the images", "RUN_DIR": "/the run"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 75, done.stderr
    assert done.stdout.endswith("scontrol requeue 7\n"), done.stdout + done.stderr
    config = yaml.safe_load(done.stdout.removesuffix("scontrol requeue 7\n"))
    assert config["trainer"]["devices"] == config["trainer"]["num_nodes"] == "auto"
    assert (config["data"]["root"], config["run_dir"]) == ("/the images", "/the run")
