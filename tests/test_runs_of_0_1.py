"""Runs that an earlier simmim left go on and are judged as they were then (tests/runs_of_0_1)."""

import shutil
from pathlib import Path

import pytest
from conftest import compose, rows

from simmim.training.run_dir.completed import is_finished

pytestmark = pytest.mark.unchecked

DATA = ["data.batch_size=4", "data.num_workers=0", "data.train_size=16", "data.val_size=6"]
OPTIONS = [
    *("model.image_size=32", "model.window_size=4", "model.embed_dim=8", "model.depths=[1,1]"),
    *("model.num_heads=[1,1]", *DATA, "trainer=cpu", "logger=csv", "trainer.log_every_n_steps=1"),
    "save.monitor=null",
]
PRETRAIN = [*OPTIONS, "reconstructions.count=0"]
# Those of the same processor; others round otherwise.
NEAR = {"rel": 1e-4}


@pytest.fixture
def runs_of_0_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, within which a test stands."""
    shutil.copytree(Path(__file__).with_name("runs_of_0_1"), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_they_go_on(run, runs_of_0_1):
    first_rows = rows(runs_of_0_1 / "pretrain")
    # The weights that fine-tuning began with are compared: it goes on before they change.
    options = [*OPTIONS, "model=swinv2_nano", "init.checkpoint=pretrain", "trainer.max_steps=8"]
    finetuned = run("finetune", *options, name="finetune")
    assert finetuned["steps"] == 8
    assert finetuned["metrics"]["val/loss"] == pytest.approx(2.467942237854004, **NEAR)
    pretrained = run("pretrain", *PRETRAIN, "trainer.max_steps=8", name="pretrain")
    assert pretrained["steps"] == 8
    assert pretrained["metrics"]["val/loss"] == pytest.approx(0.8528828620910645, **NEAR)
    assert rows(runs_of_0_1 / "pretrain")[: len(first_rows)] == first_rows


def test_they_are_judged_as_they_were(run, runs_of_0_1):
    judged = run("evaluate", "checkpoint=finetune", *DATA, "trainer=cpu", name="judged")
    assert judged["metrics"]["val/loss"] == pytest.approx(2.471169948577881, **NEAR)


def test_they_are_finished(runs_of_0_1):
    folder = runs_of_0_1 / "pretrain"
    config = compose("pretrain", [*PRETRAIN, "trainer.max_steps=4", f"run_dir={folder}"])
    assert is_finished(folder, config)
