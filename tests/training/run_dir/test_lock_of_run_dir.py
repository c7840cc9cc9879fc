"""One run, one writer: the second process that would write to a run directory stops."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simmim.training.run_dir import lock
from simmim.training.run_dir.lock import RunDirLock, writer_is_gone
from simmim.utils.errors import UserError

# Holds the directory, starts a process of its own as a loader would, and waits.
HOLD = """
import os, sys, time
from simmim.training.run_dir.lock import RunDirLock
writer = RunDirLock(sys.argv[1])
child = os.fork()
if child == 0:
    time.sleep(600)
    os._exit(0)
print(child, flush=True)
time.sleep(600)
"""


def test_a_second_process_stops_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    child = int(first.stdout.readline())
    try:
        with pytest.raises(UserError) as refused:
            RunDirLock(tmp_path, patience=0.1)
        assert f"is being written to by another run (process {first.pid} on" in str(refused.value)
        assert "use another run_dir" in str(refused.value)
        assert not writer_is_gone(tmp_path)
        first.kill()
        first.wait()
        assert writer_is_gone(tmp_path)
        # Its loader's worker lives on for a while.
        RunDirLock(tmp_path, patience=5).release()
    finally:
        first.kill()
        os.kill(child, 9)
        first.wait()


def test_looking_for_the_writer_does_not_give_up_its_own_lock(tmp_path: Path) -> None:
    """A run's report asks at every page, within the run."""
    writer = RunDirLock(tmp_path)
    assert not writer_is_gone(tmp_path)
    start = (
        "import sys; from simmim.training.run_dir.lock import RunDirLock; "
        "RunDirLock(sys.argv[1], patience=0)"
    )
    other = subprocess.run(
        [sys.executable, "-c", start, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "is being written to by another run" in other.stderr
    writer.release()
    assert not writer_is_gone(tmp_path)


def test_without_file_locks_the_file_says_who_writes(tmp_path, monkeypatch, caplog) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    caplog.set_level("INFO")
    first = RunDirLock(tmp_path, patience=0)
    assert "has no file locks" in caplog.text
    first.release()
    file = tmp_path / ".writer"
    other = {"host": "elsewhere", "process": 1, "started": 0.0, "job": "77"}
    file.write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"process 1 on elsewhere.*remove .*\.writer if it is gone"):
        RunDirLock(tmp_path, patience=0)
    # SLURM has started the same job again.
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    RunDirLock(tmp_path, patience=0).release()
    monkeypatch.delenv("SLURM_JOB_ID")
    file.write_text(json.dumps(other | {"host": socket.gethostname(), "started": time.time()}))
    RunDirLock(tmp_path, patience=0).release()


def test_a_directory_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to \(.*use another run_dir"):
        lock.RunDirLock(tmp_path / "file" / "run")
