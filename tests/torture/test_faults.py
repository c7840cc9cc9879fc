"""What machines do to a run: files that are damaged, disks that are full, workers that die."""

import contextlib
import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from conftest import TINY_DEMO
from safetensors.torch import load_file

from simmim.checkpoints.read import read_weights
from simmim.cli.main import explain, mendable
from simmim.training.run_dir.lock import RunDirLock
from simmim.training.run_dir.resume import resume_checkpoint
from simmim.utils.errors import UserError
from torture.jobs import start

pytestmark = pytest.mark.torture

DAMAGES = 200
OPTIONS = [
    *TINY_DEMO,
    *("trainer.max_steps=6", "save.every_n_steps=2", "save.keep=2", "reconstructions.count=0"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, with those of steps 4 and 6 kept."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert start("pretrain", OPTIONS, folder) == 0, (folder / "output.txt").read_text()
    return folder


def equal(first: object, second: object) -> bool:
    """The same structure of the same values, to the bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return (
            isinstance(second, dict)
            and first.keys() == second.keys()
            and all(equal(value, second[name]) for name, value in first.items())
        )
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


def load(path: Path) -> dict[str, object]:
    return torch.load(path, weights_only=True, map_location="cpu")


def damages(content: bytes, kind: str) -> Iterator[bytes]:
    drawn = random.Random(7)
    for _ in range(DAMAGES):
        place = drawn.randrange(len(content))
        if kind == "truncated":
            yield content[:place]
        else:
            flipped = bytearray(content)
            flipped[place] ^= 1 << drawn.randrange(8)
            yield bytes(flipped)


@pytest.mark.parametrize("kind", ["truncated", "flipped"])
def test_a_damaged_checkpoint_is_passed_over(trained: Path, tmp_path: Path, kind: str) -> None:
    """Or it is one in which the damage touches nothing that is read."""
    for name in ("step-00000004.ckpt", "step-00000006.ckpt"):
        shutil.copy(trained / "checkpoints" / name, tmp_path)
    older, newest = tmp_path / "step-00000004.ckpt", tmp_path / "step-00000006.ckpt"
    whole, content = load(newest), newest.read_bytes()
    last = tmp_path / "last.ckpt"
    os.link(newest, last)
    harmless = 0
    for damaged in damages(content, kind):
        newest.write_bytes(damaged)  # last.ckpt is another name of it
        taken = resume_checkpoint("auto", last).path
        if taken == last:
            assert equal(load(last), whole)
            harmless += 1
            continue
        assert taken == older
        with pytest.raises(UserError, match="is damaged or no checkpoint"):
            resume_checkpoint(str(newest), tmp_path / "elsewhere" / "last.ckpt")
        with pytest.raises(UserError, match=r"step-00000006\.ckpt"):
            read_weights(newest)
    print(f"{DAMAGES} {kind}: {harmless} harmless, the others found")
    assert harmless < DAMAGES / 10


@pytest.mark.parametrize("kind", ["truncated", "flipped"])
def test_damaged_weights_are_refused(trained: Path, tmp_path: Path, kind: str) -> None:
    content = (trained / "encoder.safetensors").read_bytes()
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(content)
    whole = read_weights(path)
    harmless = 0
    for damaged in damages(content, kind):
        path.write_bytes(damaged)
        try:
            weights = read_weights(path)
        except UserError as error:
            assert "encoder.safetensors" in str(error)
            continue
        harmless += 1
        assert equal(weights.tensors, whole.tensors)
        assert weights.description == whole.description
    print(f"{DAMAGES} {kind}: {harmless} harmless, the others found")
    assert harmless < DAMAGES / 10


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here; the limited file below takes its place")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_destroys_no_checkpoint(small_disk: Path, tmp_path: Path) -> None:
    """Full in the middle of the third; the run says so, goes on, and fails at its end."""
    folder = small_disk / "run"
    options = [*OPTIONS, "logger=csv", "save.monitor=null"]
    assert start("pretrain", [*options, "trainer.max_steps=2"], folder) == 0
    last = folder / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(bytes(max(0, free - len(before) // 2)))
    assert start("pretrain", [*options, "trainer.max_steps=8"], folder) == 1
    output = (folder / "output.txt").read_text()
    assert "step-00000004.ckpt cannot be written" in output
    assert "training goes on" in output
    assert "step-00000008.ckpt cannot be written" in output
    assert "make room" in output
    assert last.read_bytes() == before
    assert not list((folder / "checkpoints").glob("*.partial"))
    (small_disk / "filler").unlink()
    assert start("pretrain", [*options, "trainer.max_steps=8"], folder) == 0
    assert start("pretrain", [*options, "trainer.max_steps=8"], tmp_path / "whole") == 0
    weights = [load_file(run / "encoder.safetensors") for run in (folder, tmp_path / "whole")]
    assert equal(*weights)


def limit_files() -> None:
    """No file may grow beyond 64 KiB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))


def test_a_file_that_may_not_grow_is_a_clear_error(tmp_path: Path) -> None:
    assert start("pretrain", OPTIONS, tmp_path / "run", prepare=limit_files) == 1
    output = (tmp_path / "run" / "output.txt").read_text()
    assert "File too large" in output
    assert "the same command goes on from the beginning" in output
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_run_directory_that_is_read_only_is_told_before_training(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    bound = subprocess.run(
        f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}",
        shell=True,
        check=False,
        capture_output=True,
    )
    if bound.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        with pytest.raises(UserError, match=r"cannot be written to.*use another run_dir"):
            RunDirLock(folder)
        error = OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder / ".hydra"))
        told = mendable(error)
        assert told is not None
        assert "Read-only file system" in explain(told, "pretrain")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def kill_a_worker() -> None:
    """Of this process, as soon as there is one: a fork, unlike git or a resource tracker."""
    import threading

    def watch() -> None:
        process = psutil.Process()
        while True:
            for child in process.children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if child.cmdline() == process.cmdline():
                        child.kill()
                        return
            time.sleep(0.05)

    threading.Thread(target=watch, daemon=True).start()


def test_a_worker_that_is_killed_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    options = [*OPTIONS, "data.num_workers=2", "trainer.max_steps=400", "data.train_size=64"]
    options += ["trainer.max_epochs=1000", "trainer.check_val_every_n_epoch=1000"]
    assert start("pretrain", options, tmp_path / "run", prepare=kill_a_worker) == 1
    output = (tmp_path / "run" / "output.txt").read_text()
    assert "a loader worker ended (killed by signal" in output
    assert "goes on from the last checkpoint" in output
    assert start("pretrain", options, tmp_path / "run") == 0


def set_the_clock_back() -> None:
    """An hour at each look."""
    now = [time.time()]

    def earlier() -> float:
        now[0] -= 3600
        return now[0]

    time.time = earlier


def test_a_clock_that_is_set_back_changes_nothing(tmp_path: Path) -> None:
    options = [*OPTIONS, "save.every_n_steps=null", "save.every_minutes=1e-9"]
    assert start("pretrain", options, tmp_path / "back", prepare=set_the_clock_back) == 0
    assert start("pretrain", options, tmp_path / "run") == 0
    runs = [tmp_path / name for name in ("back", "run")]
    assert equal(*(load_file(run / "encoder.safetensors") for run in runs))
    kept = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in runs]
    assert kept[0] == kept[1]
