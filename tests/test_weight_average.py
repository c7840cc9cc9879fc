"""The moving average of the weights, and the best checkpoint."""

import json

import pytest
import torch
from conftest import TINY, TINY_DEMO
from safetensors.torch import load_file

from simmim.models.classifier import Classifier
from simmim.utils.errors import UserError

pytestmark = pytest.mark.unchecked

DATA = [option for option in TINY_DEMO if not option.startswith("model.")]
SCRATCH = [*DATA, "model=swinv2_nano", *(option for option in TINY if "model." in option)]
NAME = "head.linear.weight"


def head(folder) -> torch.Tensor:
    return load_file(folder / "classifier.safetensors")[NAME]


def test_the_average_is_that_of_the_weights_after_each_step(run, tmp_path):
    options = [*SCRATCH, "save.every_n_steps=1", "save.keep=9", "trainer.max_steps=3"]
    run("finetune", *options, "optim.warmup_steps=0", "ema.decay=0.5")
    folder = tmp_path / "run"
    average = None
    for step in (1, 2, 3):
        content = torch.load(folder / "checkpoints" / f"step-{step:08d}.ckpt", weights_only=True)
        trained = content["current_model_state"][f"model.{NAME}"]
        average = trained if average is None else 0.5 * average + 0.5 * trained
        torch.testing.assert_close(content["state_dict"][f"model.{NAME}"], average)
    assert not torch.equal(trained, average)
    torch.testing.assert_close(head(folder), average)


def test_what_is_validated_is_what_is_saved(run, tmp_path):
    options = [*SCRATCH, "trainer.max_steps=4", "optim.lr=1e-2"]
    summary = run("finetune", *options, "ema.decay=0.9", name="run")
    start = f"init.checkpoint={tmp_path / 'run'}"
    again = run("transfer", *DATA, "trainer.max_steps=1", start, name="again")
    assert again["metrics"]["direct/loss"] == summary["metrics"]["val/loss"]


def test_training_images_are_judged_with_the_average_too(run, tmp_path, monkeypatch):
    seen = []
    forward = Classifier.forward

    def note(self, images):
        if not self.training:
            seen.append(self.head.linear.weight.detach().clone())
        return forward(self, images)

    monkeypatch.setattr(Classifier, "forward", note)
    options = ["ema.decay=0.9", "optim.lr=1e-2", "optim.warmup_steps=0", "save.monitor=null"]
    # Validated while it is fitted: after that, the average is all that there is.
    options += ["trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1"]
    run("finetune", *SCRATCH, *options, "report.training_images=5")
    # Two batches of training images, and two held-out ones.
    assert len(seen) == 4
    for weights in seen:
        assert torch.equal(weights, head(tmp_path / "run"))
    assert len(rows(tmp_path / "run", "train/top1")) == 1


@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_average_equals_one_that_was_not_interrupted(run, tmp_path, stop):
    """Stopped within an epoch, or made longer after it had ended."""
    options = [*SCRATCH, "optim.schedule=multistep", "ema.decay=0.9"]
    run("finetune", *options, "trainer.max_steps=6", name="whole")
    run("finetune", *options, f"trainer.max_steps={stop}", name="longer")
    run("finetune", *options, "trainer.max_steps=6", name="longer")
    assert torch.equal(head(tmp_path / "whole"), head(tmp_path / "longer"))


@pytest.mark.parametrize("decay", [0, 1, 2])
def test_a_decay_that_averages_nothing_is_refused(run, decay):
    with pytest.raises(UserError, match=rf"ema.decay {decay}(\.0)? is not in \(0, 1\)"):
        run("finetune", *SCRATCH, f"ema.decay={decay}")


def rows(folder, column: str) -> list[float]:
    import csv

    with (folder / "metrics.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


@pytest.mark.parametrize(
    ("stage", "monitor", "best"),
    [("finetune", "val/loss", min), ("finetune", "val/top1", max), ("pretrain", "val/loss", min)],
)
def test_the_best_checkpoint_is_the_best_validation(run, tmp_path, stage, monitor, best):
    options = SCRATCH if stage == "finetune" else TINY_DEMO
    rates = ["optim.lr=3e-2", "optim.warmup_steps=0", "trainer.max_epochs=5"]
    rates += ["trainer.check_val_every_n_epoch=1"]
    chosen = [f"save.monitor={monitor}"]
    summary = run(stage, *options, *rates, *chosen)
    values = rows(tmp_path / "run", monitor)
    assert len(values) == 5
    assert summary["best"][monitor] == pytest.approx(best(values), rel=1e-4)
    steps = 4 * (values.index(best(values)) + 1)
    assert summary["best"]["step"] == steps
    content = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert content["global_step"] == steps


def test_a_longer_run_compares_with_the_best_it_had(run, tmp_path):
    """What the first part reached is not lost to a worse second part."""
    options = [*SCRATCH, "save.monitor=val/loss", "save.mode=min", "optim.warmup_steps=0"]
    options += ["trainer.check_val_every_n_epoch=1"]
    first = run("finetune", *options, "trainer.max_epochs=2", "optim.lr=1e-3")
    worse = ["optim.lr=10", "optim.schedule=multistep", "trainer.max_epochs=4", "resume_force=true"]
    second = run("finetune", *options, *worse)
    if second["best"]["step"] > first["best"]["step"]:
        assert second["best"]["val/loss"] < first["best"]["val/loss"]
    else:
        assert second["best"] == first["best"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["best"] == second["best"]


def test_another_monitor_does_not_compare_with_the_one_before(run, tmp_path):
    options = [*SCRATCH, "trainer.check_val_every_n_epoch=1"]
    run("finetune", *options, "trainer.max_epochs=1", "save.monitor=val/top1")
    second = run("finetune", *options, "trainer.max_epochs=2", "save.monitor=val/loss")
    assert second["best"]["step"] == 8
    assert second["best"]["val/loss"] > 1


def test_a_figure_that_is_measured_seldom_may_be_monitored(run, tmp_path):
    options = ["save.monitor=val/knn_top1", "knn.every_n_epochs=2", "knn.k=2"]
    summary = run("pretrain", *TINY_DEMO, *options, "trainer.max_epochs=3")
    assert summary["best"]["step"] in (8, 12)


def test_an_unknown_figure_is_named_and_no_monitor_writes_no_best(run, tmp_path):
    with pytest.raises(
        UserError, match=r"save.monitor=val/f1 is no validation metric .* use val/loss, val/top1"
    ):
        run("finetune", *SCRATCH, "save.monitor=val/f1", "trainer.max_epochs=1")
    summary = run("finetune", *SCRATCH, "save.monitor=null", "trainer.max_epochs=1", name="none")
    assert summary["best"] is None
    assert not (tmp_path / "none" / "checkpoints" / "best.ckpt").exists()
