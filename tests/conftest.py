"""What many tests share: configurations composed as the command line does it, and tiny runs."""

import csv
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import hydra
import jaxtyping
import pytest
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig

from simmim.cli.main import config_directory, run_stage

# Small enough for a run to take about a second.
TINY = [
    "model.image_size=32",
    "model.window_size=4",
    "model.embed_dim=32",
    "model.depths=[1,1]",
    "model.num_heads=[1,2]",
    "data.batch_size=4",
    "data.num_workers=0",
    "trainer=cpu",
]
# Ends of the names of figures that tell of time and memory.
VARYING = ("second", "data_wait", "memory_bytes")
TINY_DEMO = [*TINY, "data.train_size=16", "data.val_size=6"]

os.environ.setdefault("OMP_NUM_THREADS", "1")


# On busy cores, waiting for each other's threads takes longer than the work.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--official",
        metavar="PATH",
        help="a work tree of github.com/microsoft/Swin-Transformer to compare with",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Checks the types of every call (pyproject.toml's addopts), unless the test is marked unchecked.

    A run takes twice as long with it: of whole runs, those of test_evaluate, test_export,
    test_finetune, test_reconstruct and callbacks/ are checked, and others are not.
    """
    is_unchecked = item.get_closest_marker("unchecked") is not None
    jaxtyping.config.update("jaxtyping_disable", is_unchecked)


def compose(stage: str, overrides: list[str]) -> DictConfig:
    """The configuration that `python -m simmim.<stage> <overrides>` runs with."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_directory())):
        return hydra.compose(stage, overrides, return_hydra_config=False)


# Why a test may be skipped where SIMMIM_SKIPS=listed (`.ci/run` sets it). There all that simmim offers
# is installed, so that whatever else is skipped was forgotten.
LISTED_SKIPS = {
    "this machine has a GPU",
    "this machine has one core",
    "this file system takes UTF-8 alone",
    "the interpreter runs on the CPU",
    "needs --official PATH, a work tree of microsoft/Swin-Transformer",
}


def fail_unlisted_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Makes a failure of a skip whose reason is not in the list, if lists count here."""
    if os.environ.get("SIMMIM_SKIPS") != "listed" or not isinstance(report.longrepr, tuple):
        return
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if report.skipped and reason not in LISTED_SKIPS:
        report.outcome = "failed"
        report.longrepr = (
            f"skipped: {reason}. Have .ci/run or an extra of pyproject.toml provide what is missing, "
            "or add the reason to LISTED_SKIPS of tests/conftest.py"
        )


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    fail_unlisted_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escapes captured names of files that are not UTF-8, which processes of xdist cannot pass on."""
    report = yield
    fail_unlisted_skip(report)
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


# Starts a module's command in several processes of one machine.
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")


def run_python(*arguments: str, cwd: Path) -> None:
    """Runs Python with these arguments in a process of its own, which has to succeed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        check=False,
        timeout=900,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def rows(folder: Path) -> list[dict[str, str]]:
    """Those of metrics.csv, without what no two runs have alike."""
    with (folder / "metrics.csv").open() as file:
        return [
            {name: value for name, value in row.items() if not name.endswith(VARYING)}
            for row in csv.DictReader(file)
        ]


def pack(files: Path, shards: Path, per_shard: int = 1000) -> Path:
    """The files of a folder as tar shards of so many, in order; the first part of a name is the key."""
    shards.mkdir(parents=True, exist_ok=True)
    paths = sorted(path for path in files.rglob("*") if path.is_file())
    for first in range(0, len(paths), per_shard):
        with tarfile.open(shards / f"{first // per_shard:03}.tar", "w") as tar:
            for path in paths[first : first + per_shard]:
                tar.add(path, path.relative_to(files).as_posix())
    return shards


def run_within(folder: Path, stage: str, *overrides: str) -> dict[str, Any]:
    """Runs a stage within this process: one of its own takes ten seconds to import what it needs."""
    folder.mkdir(exist_ok=True)
    config = compose(stage, [*overrides, f"run_dir={folder}"])
    try:
        return run_stage(stage, config, str(folder))
    except InstantiationException as error:
        # The command line shows the mistake itself, not who called what.
        raise error.__cause__ or error from None


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a stage within this process; `name` is the run directory below `tmp_path`."""

    def run_named(stage: str, *overrides: str, name: str = "run") -> dict[str, Any]:
        return run_within(tmp_path / name, stage, *overrides)

    return run_named
