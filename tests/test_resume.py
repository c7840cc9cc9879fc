"""What `resume` goes on from: where a run began, or how far it came."""

from pathlib import Path

import pytest
import torch

from simmim.errors import UserError
from simmim.runs import resume_checkpoint


def write(path: Path, step: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"encoder": {}, "optimizer_states": [], "global_step": step}, path)
    return path


def test_a_run_that_began_from_a_path_goes_on_from_its_own_when_started_again(
    tmp_path: Path,
) -> None:
    start, last = write(tmp_path / "start.ckpt", 10), tmp_path / "run" / "last.ckpt"
    assert resume_checkpoint(str(start), last) == start
    write(last, 12)
    assert resume_checkpoint(str(start), last) == last
    write(last, 8)
    assert resume_checkpoint(str(start), last) == start


def test_a_requeued_job_goes_on_though_it_was_to_start_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = write(tmp_path / "last.ckpt", 5)
    assert resume_checkpoint("auto", last) == last
    assert resume_checkpoint("never", last) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert resume_checkpoint("never", last) == last
    assert resume_checkpoint("never", tmp_path / "none.ckpt") is None


def test_a_last_checkpoint_that_is_gone_does_not_start_anew_in_silence(tmp_path: Path) -> None:
    last = tmp_path / "last.ckpt"
    last.symlink_to("step-00000010.ckpt")
    with pytest.raises(UserError, match="points to a checkpoint that is gone; set resume="):
        resume_checkpoint("auto", last)
