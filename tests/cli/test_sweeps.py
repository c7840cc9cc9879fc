"""Sweeps: stable names, what is finished is not run again, what failed is named."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_DEMO
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from simmim.cli import subprocesses
from simmim.cli.main import explain, run_command, run_composed
from simmim.cli.sweeps import job_name, require_one_process
from simmim.training import fit
from simmim.training.run_dir.completed import is_finished, record_finished
from simmim.training.run_dir.config_record import Composed
from simmim.utils.errors import UserError

pytestmark = pytest.mark.unchecked

STEP = ["trainer.max_steps=1", "reconstructions.count=0", "logger=csv"]


def run_real(stage: str, composed: Composed) -> int:
    """A job as its process runs it."""
    try:
        run_composed(stage, composed, wants_traceback=False)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    except Exception:
        return 1
    return 0


def run_pretended(stage: str, composed: Composed) -> int:
    """What a job leaves, without training, where its options are right."""
    if composed.config.mask.ratio >= 1:
        return run_real(stage, composed)
    steps, loss = composed.config.trainer.max_steps, composed.config.optim.lr
    summary = {"steps": steps, "metrics": {"val/loss": loss}}
    (composed.run_dir / "summary.json").write_text(json.dumps(summary))
    record_finished(composed.run_dir, composed.config, composed.overrides)
    return 0


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Runs a sweep within this process; returns its exit code and the directories that it ran."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def start(*options: str, run_job=run_pretended) -> tuple[int, list[str]]:
        ran: list[str] = []

        def run_within(stage: str, composed: Composed) -> int:
            ran.append(composed.run_dir.name)
            return run_job(stage, composed)

        monkeypatch.setattr(subprocesses, "run_apart", run_within)
        arguments = ["simmim.pretrain", "-m", *TINY_DEMO, *STEP, *options, "run_dir=sweep"]
        monkeypatch.setattr(sys, "argv", arguments)
        try:
            run_command("pretrain")
        except SystemExit as stopped:
            return int(stopped.code or 0), ran
        return 0, ran

    return start


def summaries(folder: Path) -> dict[str, Any]:
    return {
        path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/summary.json")
    }


def test_a_sweep_that_is_started_again_trains_only_what_is_missing(sweep, tmp_path, capsys):
    code, ran = sweep("optim.lr=1e-3,5e-3")
    assert (code, ran) == (0, ["optim.lr-0.001", "optim.lr-0.005"])
    before = summaries(tmp_path / "sweep")
    assert sorted(before) == ran
    assert sweep("optim.lr=5e-3,0.001,2e-3", "data.num_workers=1") == (0, ["optim.lr-0.002"])
    after = summaries(tmp_path / "sweep")
    assert {name: after[name] for name in before} == before

    assert sweep("optim.lr=1e-3,5e-3", "trainer.max_steps=2") == (0, ran)
    assert {job["steps"] for job in summaries(tmp_path / "sweep").values()} == {1, 2}

    capsys.readouterr()
    assert sweep("optim.lr=1e-3,5e-3", "mask.ratio=0.5", "trainer.max_steps=2") == (2, [])
    told = capsys.readouterr().err
    assert "finished run of another configuration (mask.ratio 0.6 instead of 0.5)" in told


def test_a_choice_of_one_is_still_in_the_name(sweep):
    # scripts/claims.py finds the jobs of its sweeps by it.
    code, ran = sweep("seed=choice(0)", "optim.lr=2e-3", "mask.ratio=choice(0.25,0.5)")
    assert (code, ran) == (0, ["mask.ratio-0.25__seed-0", "mask.ratio-0.5__seed-0"])


def test_a_job_that_fails_is_named_and_the_others_go_on(sweep, tmp_path, capsys):
    code, ran = sweep("mask.ratio=2,0.5", "seed=0,1")
    assert code == 2
    assert len(ran) == 4
    folder = tmp_path / "sweep"
    assert sorted(summaries(folder)) == ["mask.ratio-0.5__seed-0", "mask.ratio-0.5__seed-1"]
    told = capsys.readouterr().err
    assert "error: 2 of the sweep's jobs failed" in told
    assert "sweep/mask.ratio-2__seed-1: mask ratio 2 is not between 0 and 1" in told


def test_a_job_that_was_stopped_goes_on(sweep, tmp_path, monkeypatch, capsys):
    write = fit.write_summary

    def stop(*_: Any) -> dict[str, Any]:
        raise OSError("no space left")

    monkeypatch.setattr(fit, "write_summary", stop)
    assert sweep("seed=0,1", run_job=run_real)[0] == 2
    assert "sweep/seed-1: no space left" in capsys.readouterr().err
    monkeypatch.setattr(fit, "write_summary", write)
    assert sweep("seed=0,1", run_job=run_real) == (0, ["seed-0", "seed-1"])
    assert "going on from" in (tmp_path / "sweep" / "seed-0" / "pretrain.log").read_text()
    assert not list(tmp_path.glob("sweep/*/failure.txt"))


def test_an_objective_that_will_not_be_measured_is_refused(run):
    with pytest.raises(UserError, match=r"objective=val/top1 is no validation metric .*val/loss"):
        run("pretrain", *TINY_DEMO, *STEP, "objective=val/top1")


@pytest.mark.parametrize(
    ("before", "now", "finished"),
    [
        ({}, {}, True),
        ({}, {"data": {"num_workers": 8}, "run_dir": "b"}, True),
        ({"trainer": {"max_epochs": 9}}, {"trainer": {"max_epochs": 10}}, False),
        ({"trainer": {"max_epochs": 9}}, {"trainer": {"max_epochs": None}}, False),
        ({"trainer": {"max_steps": 9}}, {"trainer": {"max_steps": -1}}, False),
        ({"trainer": {"max_epochs": 9}}, {"trainer": {"max_epochs": 8}}, None),
        ({"seed": 0}, {"seed": 1}, None),
    ],
)
def test_what_counts_as_finished(tmp_path, before, now, finished):
    before, now = (
        OmegaConf.merge({"run_dir": "a", "trainer": {}, "data": {"num_workers": 1}}, options)
        for options in (before, now)
    )
    assert not is_finished(tmp_path, now)
    record_finished(tmp_path, before, ["seed=0"])
    assert not is_finished(tmp_path, now)
    (tmp_path / "summary.json").write_text("{}")
    if finished is None:
        with pytest.raises(UserError, match="another configuration"):
            is_finished(tmp_path, now)
    else:
        assert is_finished(tmp_path, now) == finished


def test_names_are_directories_that_need_no_quotes():
    options = [
        "optim.lr=1e-05__seed=-1",
        "init.checkpoint=a/b",
        "init.checkpoint=a-b",
        "model.depths=[1,2]",
        "model.depths=[1,12]",
        "model=" + 300 * "x",
        "model=" + 301 * "x",
    ]
    names = [job_name(text) for text in options]
    assert names[0] == "optim.lr-1e-05__seed--1"
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name) < 140
        parsed = OverridesParser.create().parse_override(f"init.checkpoint=sweep/{name}/x")
        assert parsed.value() == f"sweep/{name}/x"
        assert not parsed.is_sweep_override()


@pytest.mark.parametrize(
    ("group", "choice", "extra"),
    [
        ("hydra/launcher", "submitit_slurm", "submitit"),
        ("hydra/launcher", "submitit_local", "submitit"),
    ],
)
def test_a_missing_extra_is_named(group, choice, extra):
    error = MissingConfigException("In 'pretrain'", f"{group}/{choice}", ["basic"])
    assert explain(error, "pretrain").endswith(f'pip install "simmim[{extra}]"')


def test_a_sweep_under_torchrun_is_refused(monkeypatch):
    require_one_process()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(UserError, match="run it without torchrun"):
        require_one_process()


def composed(folder: Path) -> Composed:
    config = OmegaConf.create({"run_dir": str(folder)})
    return Composed(folder / "resolved.yaml", config, [], OmegaConf.create({}))


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_how_a_job_ended_is_told(tmp_path, monkeypatch):
    for text, code in (("exit 3", 3), ("kill -9 $$", -9), ('test "$SIMMIM_CONFIGURATION"', 0)):
        monkeypatch.setattr(sys, "executable", script(tmp_path / "python", text))
        assert subprocesses.run_apart("pretrain", composed(tmp_path)) == code
    assert "SIMMIM_CONFIGURATION" not in os.environ


def test_a_sweep_that_is_ended_ends_its_job_first(tmp_path):
    """Which has time to write a checkpoint."""
    job = script(
        tmp_path / "job",
        'trap "sleep 0.3; echo saved > saved; exit 0" TERM; touch started; while :; do sleep 0.1; done',
    )
    code = f"""
import sys
from pathlib import Path
from omegaconf import OmegaConf
from simmim.cli import subprocesses
from simmim.training.run_dir.config_record import Composed
sys.executable = {job!r}
config = OmegaConf.create({{"run_dir": "."}})
subprocesses.run_apart("pretrain", Composed(Path("x"), config, [], config))
"""
    sweep = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    sweep.terminate()
    assert sweep.wait(300) == 75
    assert (tmp_path / "saved").exists()


@pytest.mark.slow
def test_submitit_runs_each_job_and_one_command_gathers_them(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    tiny = [*TINY_DEMO, *STEP, "hydra/launcher=submitit_local", "run_dir=sweep"]
    command = [sys.executable, "-m", "simmim.pretrain", "-m", *tiny, "optim.lr=1e-4,1e-3"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=1200, capture_output=True)
    assert len(summaries(tmp_path / "sweep")) == 2
    gather = Path(__file__).parents[2] / "scripts" / "gather_sweep.py"
    subprocess.run([sys.executable, gather, "sweep"], cwd=tmp_path, check=True, capture_output=True)
    table = (tmp_path / "sweep" / "sweep.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table] == [
        "| optim.lr",
        "| ---",
        "| 0.0001",
        "| 0.001",
    ]
