"""The report of real runs: while they go on, when they fail, when they are resumed, with labels."""

import csv
import json
import socket
import subprocess

import pytest
import torch
from conftest import TINY, TINY_DEMO

from simmim.pretrain.module import SimMIMModule
from simmim.report import callback
from simmim.report.run_record import read_run

LENGTH = ["trainer.max_steps=6", "trainer.log_every_n_steps=1"]
OPTIONS = [*TINY_DEMO, *LENGTH]
# `model=auto` takes its architecture from the checkpoint: no switch of it is given.
WITH_LABELS = [option for option in OPTIONS if not option.startswith("model.")]
SCRATCH = [*WITH_LABELS, "model=swinv2_nano", *(option for option in TINY if "model." in option)]


def test_a_run_writes_its_report_as_it_goes_and_goes_on_with_it(run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    written = []
    write_report = callback.write_report

    def note(run_dir, **options):
        path = write_report(run_dir, **options)
        page = path.read_text()
        written.append(
            (read_run(run_dir).state, read_run(run_dir, options.get("pending")).steps, len(page))
        )
        return path

    training_step = SimMIMModule.training_step

    def fail(self, batch, batch_idx):
        if self.global_step == 5:
            raise RuntimeError("the disk is full\nand more")
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(callback, "write_report", note)
    monkeypatch.setattr(callback, "_SHARE_OF_TIME", 1e9)
    monkeypatch.setattr(SimMIMModule, "training_step", fail)
    with pytest.raises(RuntimeError):
        run("pretrain", *OPTIONS, "save.every_n_steps=4")
    # At the start, after the validation of the first epoch, with its best checkpoint and that of step
    # 4; and at the end.
    states, steps, _ = zip(*written, strict=True)
    assert states[0] == "running"
    assert steps[0] == 0
    assert 4 in steps
    assert (states[-1], steps[-1]) == ("failed", 5)
    page = (folder / "report.html").read_text()
    assert "Ended by an error.</strong> RuntimeError: the disk is full</p>" in page
    assert "val/loss" not in page  # said in words
    assert "Attention by block" in page

    monkeypatch.setattr(SimMIMModule, "training_step", training_step)
    run("pretrain", *OPTIONS)
    record = read_run(folder)
    assert record.state == "finished"
    assert "reason" not in record.facts
    assert record.curve("train/loss").steps == [1, 2, 3, 4, 5, 6]
    assert record.facts["total_steps"] == 6
    assert record.facts["hidden_share"] == pytest.approx(10 / 16)
    assert record.last("train/peak_memory_bytes") > 1e6
    page = (folder / "report.html").read_text()
    assert "Ended by an error" not in page
    assert not list(folder.glob("*.partial"))


def test_a_report_that_cannot_be_written_hinders_nothing(run, tmp_path, monkeypatch, caplog):
    """No checkpoint, no other error, no end."""
    told = "report.html cannot be written (OSError: No space left on device); the run goes on"
    training_step = SimMIMModule.training_step

    def fail(self, batch, batch_idx):
        if self.global_step == 5:
            raise RuntimeError("the GPU is gone")
        return training_step(self, batch, batch_idx)

    def have_no_room(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(callback, "write_report", have_no_room)
    monkeypatch.setattr(callback, "_SHARE_OF_TIME", 1e9)
    monkeypatch.setattr(SimMIMModule, "training_step", fail)
    with pytest.raises(RuntimeError, match="the GPU is gone"):
        run(
            "pretrain",
            *OPTIONS,
            "trainer.log_every_n_steps=2",
            *("save.every_n_steps=2", "save.keep=2"),
        )
    checkpoints = tmp_path / "run" / "checkpoints"
    assert (checkpoints / "step-00000004.ckpt").is_file()
    # What a run that is killed at its first logged step still owes to it.
    content = torch.load(checkpoints / "step-00000002.ckpt", weights_only=True)
    assert "train/peak_memory_bytes" in content["callbacks"]["Continuation"]["figures"]
    assert sum(told in line for line in caplog.messages) == 1
    monkeypatch.setattr(SimMIMModule, "training_step", training_step)
    assert run("pretrain", *OPTIONS)["steps"] == 6
    assert not any("ckpt cannot be written" in line for line in caplog.messages)
    assert read_run(tmp_path / "run").state == "finished"


def test_copying_is_measured_once_and_logged_with_every_validation(run, tmp_path):
    run("pretrain", *TINY_DEMO, "trainer.max_epochs=2")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/loss"]]
    copying = [float(row["val/baseline_nearest_visible"]) for row in rows]
    assert len(copying) == 2
    assert copying[0] == copying[1] > 0


def test_training_with_labels_is_compared_with_chance_and_training_images(run, tmp_path):
    run("finetune", *SCRATCH, "report.training_images=5", name="f")
    record = read_run(tmp_path / "f")
    assert record.facts["classes"] == 12
    # Of five images, so many fifths are told right.
    assert (5 * record.last("train/top1")) % 1 == pytest.approx(0, abs=1e-6)
    page = (tmp_path / "f" / "report.html").read_text()
    assert "chance is 8.3%" in page
    assert "on training images it is" in page


def test_a_transfer_tells_what_it_began_with(run, tmp_path):
    run("finetune", *SCRATCH, "trainer.max_steps=1", name="f")
    run(
        *("transfer", *WITH_LABELS, f"init.checkpoint={tmp_path / 'f'}", "model.image_size=48"),
        *("report.training_images=0", "model.window_size=6"),
        name="t",
    )
    summary = json.loads((tmp_path / "t" / "summary.json").read_text())
    page = (tmp_path / "t" / "report.html").read_text()
    assert f"before training at this size it was {summary['metrics']['direct/top1']:.1%}" in page
    assert "training top-1" not in page


def test_the_page_of_a_killed_run_says_so_when_it_is_made_anew(run, tmp_path):
    run("pretrain", *OPTIONS)
    facts = tmp_path / "run" / "run.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"state": "running"}))
    assert read_run(tmp_path / "run").state == "running"
    gone = subprocess.Popen(["true"])
    gone.wait()
    writer = {"host": socket.gethostname(), "process": gone.pid, "started": 0.0}
    (tmp_path / "run" / ".writer").write_text(json.dumps(writer))
    assert read_run(tmp_path / "run").state == "interrupted"
