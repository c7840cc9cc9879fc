"""A run that starts again in the directory of a finished one: what of the two is there, and when."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
from conftest import TINY_DEMO, compose

from simmim.checkpoints.read import read_weights
from simmim.pretrain.reconstructions import Reconstructions
from simmim.report.run_record import read_run
from simmim.training import run as runs
from simmim.training.callbacks import LearningRate, PreviousRunBackup
from simmim.training.run_dir.completed import is_finished
from simmim.utils.errors import UserError

OPTIONS = [*TINY_DEMO, "trainer.max_steps=4", "trainer.log_every_n_steps=1"]
OPTIONS += ["save.every_n_steps=2", "reconstructions.count=1", "logger=csv"]
ANEW = [*OPTIONS, "resume=never", "mask.ratio=0.5", "trainer.max_steps=6"]
RESULTS = ("encoder.safetensors", "summary.json", ".hydra/finished.yaml")


def failing(hook: str, at_step: int) -> type[LearningRate]:
    """A callback that fails at a hook, once so many steps are done."""

    def fail(self, trainer, *_):
        if trainer.global_step == at_step and trainer.state.fn == "fit":
            raise RuntimeError("the GPU is gone")

    return type("Failing", (LearningRate,), {hook: fail})


def fail_at(run, monkeypatch, options: list[str], hook: str, step: int) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(runs, "LearningRate", failing(hook, step))
        with pytest.raises(RuntimeError, match="the GPU is gone"):
            run("pretrain", *options)


def content(folder: Path, *names: str) -> list[bytes]:
    return [(folder / name).read_bytes() for name in names]


def test_results_of_the_run_before_are_set_aside_until_there_are_new_ones(
    run, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    run("pretrain", *OPTIONS)
    old, new = (compose("pretrain", [*each, f"run_dir={folder}"]) for each in (OPTIONS, ANEW))
    assert is_finished(folder, old)
    results = content(folder, *RESULTS)
    curves = content(folder, "metrics.csv")
    assert sorted(read_run(folder).sheets) == [4]

    # Nothing of it was touched: all that is there is the old run's.
    page = content(folder, "run.json", "report.html")
    fail_at(run, monkeypatch, ANEW, "on_fit_start", 0)
    assert content(folder, *RESULTS) == results
    assert content(folder, "run.json", "report.html") == page

    # In its first step: what the old one came to is no longer this directory's, and not lost.
    fail_at(run, monkeypatch, ANEW, "on_before_optimizer_step", 0)
    earlier = [folder / "earlier" / Path(name).name for name in RESULTS]
    assert [path.read_bytes() for path in earlier] == results
    assert content(folder, "metrics.csv") == curves
    assert not is_finished(folder, old)
    with pytest.raises(UserError, match=r"last.ckpt, or .*earlier, of the run before it"):
        read_weights(folder)
    read_weights(folder / "earlier")
    record = read_run(folder)
    assert (record.state, record.summary, record.sheets) == ("failed", {}, {})
    report = (folder / "report.html").read_text()
    assert "the GPU is gone" in report and "Too early to tell" in report
    assert "<dt>Took</dt>" not in report and "<dt>Steps</dt>" not in report

    run("pretrain", *ANEW)
    assert not (folder / "earlier").exists()
    assert content(folder, *RESULTS) != results
    assert is_finished(folder, new)
    assert sorted(read_run(folder).sheets) == [4, 6]
    assert "<dt>Steps</dt><dd>6 <span>of 6</span></dd>" in (folder / "report.html").read_text()


def test_a_finished_run_that_is_made_longer_keeps_its_results_meanwhile(run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    run("pretrain", *OPTIONS)
    results = content(folder, *RESULTS)
    longer = [*OPTIONS, "trainer.max_steps=8"]
    fail_at(run, monkeypatch, longer, "on_before_optimizer_step", 6)
    assert content(folder, *RESULTS) == results
    record = read_run(folder)
    # They are of four steps, and the record is of six.
    assert (record.steps, record.summary, sorted(record.sheets)) == (6, {}, [4])
    assert run("pretrain", *longer)["steps"] == 8
    assert read_run(folder).summary["steps"] == 8


TASK = Mock(spec=pl.LightningModule)


def at(step: int, *, is_global_zero: bool = True) -> Mock:
    return Mock(spec=pl.Trainer, global_step=step, is_global_zero=is_global_zero)


def test_only_the_first_process_of_a_run_that_begins_sets_aside(tmp_path, caplog):
    (tmp_path / "classifier.safetensors").write_text("weights")
    earlier = PreviousRunBackup(tmp_path)
    earlier.on_train_start(at(3), TASK)
    earlier.on_train_start(at(0, is_global_zero=False), TASK)
    assert [path.name for path in tmp_path.iterdir()] == ["classifier.safetensors"]
    (tmp_path / "earlier").write_text("someone's own file")
    earlier.on_train_start(at(0), TASK)
    assert "classifier.safetensors in" in caplog.text
    (tmp_path / "earlier").unlink()
    earlier.on_train_start(at(0), TASK)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["classifier.safetensors"]
    assert (tmp_path / "earlier" / "classifier.safetensors").read_text() == "weights"
    # A start that came to nothing leaves nothing to take its place.
    PreviousRunBackup(tmp_path).on_train_start(at(0), TASK)
    assert (tmp_path / "earlier" / "classifier.safetensors").is_file()


def test_pictures_of_steps_that_are_taken_again_are_removed(tmp_path):
    pictures = Reconstructions(tmp_path)
    pictures.on_train_start(at(0), TASK)
    pictures.folder.mkdir()
    for name in ("step-00000004.png", "step-00000008.png", "step-later.png", "mine.png"):
        (pictures.folder / name).write_text("")
    pictures.on_train_start(at(0, is_global_zero=False), TASK)
    pictures.on_train_start(at(4), TASK)
    left = ["mine.png", "step-00000004.png", "step-later.png"]
    assert sorted(path.name for path in pictures.folder.iterdir()) == left
