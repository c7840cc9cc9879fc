"""A start that is refused leaves the record of the run that is there as it was."""

import os
import sys
from pathlib import Path

import pytest
import yaml
from conftest import TINY_DEMO

from simmim.cli.main import run_command
from simmim.training.run_dir.lock import RunDirLock

pytestmark = pytest.mark.unchecked

OPTIONS = [*TINY_DEMO, "reconstructions.count=0", "logger=csv", "save.monitor=null"]


def start(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(sys, "argv", ["simmim.pretrain", *OPTIONS, *options, "run_dir=run"])
    try:
        run_command("pretrain")
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_refused_start_rewrites_no_record(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert start(monkeypatch, "trainer.max_steps=1") == 0
    folder = tmp_path / "run" / ".hydra"
    before = contents(folder)
    names = {"config.yaml", "hydra.yaml", "overrides.yaml", "resolved.yaml", "finished.yaml"}
    assert set(before) == names
    assert yaml.safe_load(before["resolved.yaml"])["config"]["run_dir"] == str(tmp_path / "run")
    assert "trainer.max_steps=1" in yaml.safe_load(before["overrides.yaml"])

    assert start(monkeypatch, "trainer.max_steps=2", "mask.ratio=0.5") == 2
    assert "of a run with other options: mask.ratio" in capsys.readouterr().err
    assert contents(folder) == before

    # As if the first one were still going on, on a file system that has no locks.
    def is_held(self: RunDirLock, run_dir: str, patience: float) -> None:
        from simmim.utils.errors import UserError

        raise UserError("is being written to")

    with monkeypatch.context() as patch:
        patch.setattr(RunDirLock, "_hold", is_held)
        assert start(monkeypatch, "trainer.max_steps=3") == 2
    assert "is being written to" in capsys.readouterr().err
    assert contents(folder) == before

    assert start(monkeypatch, "trainer.max_steps=2") == 0
    now = contents(folder)
    assert set(now) == names
    assert "trainer.max_steps=2" in yaml.safe_load(now["overrides.yaml"])
    assert "SIMMIM_CONFIGURATION" not in os.environ
