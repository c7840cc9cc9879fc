"""`python -m simmim.plan` and the check before every fit."""

import json
import subprocess
import sys

import pytest
from conftest import TINY, TINY_DEMO, compose

from simmim.cli.main import run_command, run_stage
from simmim.plan import devices
from simmim.utils.errors import DoesNotFitError

pytestmark = pytest.mark.unchecked


@pytest.fixture
def little_memory(monkeypatch):
    """A machine with a little more memory than the process has."""
    found = devices.this_machine()
    short = found._replace(memory=found.process + 2_000_000)
    monkeypatch.setattr("simmim.plan.preflight.this_machine", lambda: short)


def test_a_plan_is_written_and_says_what_fits(run, tmp_path):
    figures = run("plan", *TINY, "plan.device=H100", "plan.device_memory=40GB")
    assert figures == json.loads((tmp_path / "run" / "plan.json").read_text())
    assert figures["fits"]
    assert figures["available_bytes"] == 40 * 10**9
    assert figures["needed_bytes"] == sum(figures["bytes"].values())
    assert figures["largest_batch"] > 4
    assert figures["days"] > 0
    assert figures["flops_per_image"]["backward"] > figures["flops_per_image"]["forward"]


@pytest.mark.slow
def test_a_plan_imports_no_training_library(tmp_path):
    unneeded = ["pytorch_lightning", "torchmetrics", "torchvision", "timm", "matplotlib"]
    arguments = [*TINY, "data=imagefolder", "plan.device=A100", f"run_dir={tmp_path}"]
    code = (
        f"import runpy, sys; sys.argv[1:] = {arguments}\n"
        "runpy.run_module('simmim.plan', run_name='__main__', alter_sys=True)\n"
        f"print([name for name in {unneeded} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert (tmp_path / "plan.json").is_file()
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=simmim_swinv2_b", "data.root=nowhere", "trainer.devices=16"],
        ["stage=finetune", "experiment=swinv2_t_imagenet", "ema.decay=0.999"],
    ],
)
def test_a_plan_takes_the_options_of_its_stage(run, overrides):
    figures = run("plan", *overrides, "plan.device=A100")
    assert figures["parameters"] > 20_000_000
    assert figures["setting"]["precision"] == "bf16-mixed"


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_run_that_cannot_fit_stops_before_weights_and_tells_ways(run, little_memory, stage):
    with pytest.raises(DoesNotFitError) as stopped:
        run(stage, "model=swinv2_nano", *TINY_DEMO, "data.batch_size=16")
    message = str(stopped.value)
    assert "this run does not fit" in message
    assert "activations" in message
    assert "preflight=warn" in message


def test_with_warn_the_run_goes_on(run, little_memory):
    summary = run("pretrain", *TINY_DEMO, "preflight=warn", "trainer.max_steps=1")
    assert summary["steps"] == 1


def test_a_giant_stops_with_ways_that_compose(tmp_path, monkeypatch):
    found = devices.this_machine()
    monkeypatch.setattr(
        "simmim.plan.preflight.this_machine", lambda: found._replace(memory=24 * 10**9)
    )
    config = compose("pretrain", ["model=swinv2_g", "trainer=cpu"])
    with pytest.raises(DoesNotFitError) as stopped:
        run_stage("pretrain", config, str(tmp_path))
    ways = [line.strip() for line in str(stopped.value).splitlines() if "=" in line.split()[0]]
    ways = [way for way in ways if not way.startswith("preflight")]
    assert len(ways) == 3
    for way in ways:
        compose("pretrain", way.split())


def test_the_command_line_shows_the_whole_plan(tmp_path, monkeypatch, capsys):
    # No machine holds this batch.
    options = [*TINY_DEMO, f"run_dir={tmp_path}", "data.batch_size=16777216"]
    monkeypatch.setattr(sys, "argv", ["simmim.pretrain", *options])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit) as stopped:
        run_command("pretrain")
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: this run does not fit")
    assert len(shown.splitlines()) > 5
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("plan.mfu=2", "plan.mfu 2"),
        ("plan.device=abacus", "plan.device=abacus is unknown"),
        ("plan.device_memory=much", "plan.device_memory=much is no size"),
        ("trainer.strategy=dpp", "trainer.strategy=dpp is unknown"),
        # Nothing that a plan does not build is imported, and what it reads is checked all the same.
        ("data.batch_size=few", "data.batch_size=few is not of type int"),
    ],
)
def test_a_mistake_is_named(run, override, message):
    with pytest.raises(ValueError, match=message):
        run("plan", *TINY, override)
