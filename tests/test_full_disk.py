"""No room on the disk in the middle of a run: it goes on, and what can wait is written later."""

import csv
import errno
import json
import math
import os
from pathlib import Path

import pytest
import torch
from conftest import TINY_DEMO
from torch.utils.tensorboard import SummaryWriter

from simmim.pretrain import reconstructions
from simmim.training.callbacks import checkpoint, nonfinite_guard
from simmim.training.loggers import csv as metrics_csv
from simmim.training.loggers.csv import MetricsCsv
from simmim.training.module import StepMetrics, TrainingModule
from simmim.utils import files

pytestmark = pytest.mark.unchecked

OPTIONS = [*TINY_DEMO, "trainer.max_steps=8", "trainer.log_every_n_steps=1"]
OPTIONS += ["save.every_n_steps=1", "save.keep=1", "reconstructions.count=2"]


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_at_first(function, times: int):
    """The function, but that so many calls find no room."""
    calls = []

    def call(*arguments, **options):
        calls.append(arguments)
        return full() if len(calls) <= times else function(*arguments, **options)

    return call


def steps(folder: Path) -> list[int]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_a_run_goes_on_and_its_figures_wait_for_room(run, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(metrics_csv, "append", full_at_first(metrics_csv.append, 3))
    monkeypatch.setattr(checkpoint, "_point", full_at_first(checkpoint._point, 2))
    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    monkeypatch.setattr(reconstructions, "save_sheet", full)
    assert run("pretrain", *OPTIONS)["steps"] == 8
    folder = tmp_path / "run"
    assert steps(folder) == list(range(8))
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 8
    for told in ("metrics.csv", "step-00000002.ckpt", "tensorboard/", "reconstructions"):
        assert f"{told} cannot be written" in caplog.text, told
    assert caplog.text.count("metrics.csv cannot be written") == 1
    assert "step-00000003.ckpt cannot" not in caplog.text


def test_an_old_checkpoint_that_cannot_be_removed_stays(run, tmp_path, monkeypatch, caplog):
    remove = checkpoint.remove

    def refuse(path: Path) -> None:
        if path.suffix == ".ckpt":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        remove(path)

    monkeypatch.setattr(checkpoint, "remove", refuse)
    assert run("pretrain", *OPTIONS, "trainer.max_steps=2")["steps"] == 2
    assert "step-00000001.ckpt cannot be removed" in caplog.text
    assert (tmp_path / "run" / "checkpoints" / "step-00000001.ckpt").exists()


def test_a_new_column_that_finds_no_room_comes_later(tmp_path, monkeypatch):
    log = MetricsCsv(tmp_path)
    log.log_metrics({"a": 1.0}, step=0)
    log.log_metrics({"a": 2.0, "b": 3.0}, step=1)  # writes the row before
    with monkeypatch.context() as patch:
        patch.setattr(metrics_csv, "written_beside", full)
        log.flush()
    log.finalize("success")
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines == ["step,a,b", "0,1.0,", "1,2.0,3.0"]


def test_what_is_appended_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    path.write_text("one\n")
    original = Path.open

    def open_on_a_full_disk(self, *arguments, **options):
        file = original(self, *arguments, **options)
        file.write("tw")
        file.flush()
        file.write = full
        return file

    with monkeypatch.context() as patch:
        patch.setattr(files.Path, "open", open_on_a_full_disk)
        with pytest.raises(OSError, match="No space"):
            files.append(path, "two\n")
    assert path.read_text() == "one\n"
    files.append(path, "two\n")
    assert path.read_text() == "one\ntwo\n"


def test_unusual_steps_wait_for_room(run, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(nonfinite_guard, "append", full_at_first(nonfinite_guard.append, 1))
    losses = iter([math.nan, math.nan, *[1.0] * 6])
    monkeypatch.setattr(
        TrainingModule, "measure_step", lambda task, optimizer: StepMetrics(next(losses), 1.0)
    )
    assert run("pretrain", *OPTIONS, "logger=csv", "reconstructions.count=0")["steps"] == 8
    lines = (tmp_path / "run" / "unusual_steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1]
    assert "unusual_steps.jsonl cannot be written" in caplog.text
