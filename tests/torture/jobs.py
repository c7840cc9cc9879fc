"""Runs in processes forked from one that has imported simmim, killed where a plan says.

A `Death` is one moment of a run. The process kills itself there with SIGKILL: no handler, no flush.
"""

import io
import multiprocessing
import os
import random
import signal
import sys
import threading
import traceback
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from conftest import compose, rows
from safetensors.torch import load_file

from simmim.cli.main import run_stage
from simmim.training import run as runs
from simmim.training.callbacks import LearningRate
from simmim.training.callbacks import checkpoint as checkpoints

# In the middle of a step; of a validation; of writing a checkpoint; between the step's file and
# last.ckpt; after both; after so many seconds of training, wherever that is.
MOMENTS = ("step", "validation", "writing", "between", "written", "time")


class Death(NamedTuple):
    """Where a run is killed: at the first such moment from this step on, or so long after the start."""

    moment: str
    step: int
    share: float  # of the checkpoint that is written before, or of a second that passes


def plan_deaths(count: int, seed: int) -> list[Death]:
    """So many, three steps apart."""
    drawn = random.Random(seed)
    # Each kind comes, in an order that no one chose.
    moments = [MOMENTS[number % len(MOMENTS)] for number in range(count)]
    drawn.shuffle(moments)
    return [
        Death(moment, 3 * number + drawn.randint(1, 3), drawn.random())
        for number, moment in enumerate(moments)
    ]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def recorder(samples: Path, death: Death | None) -> type[LearningRate]:
    """A callback that notes which samples each step takes, and dies where it should."""

    class Recorder(LearningRate):
        def on_train_start(self, trainer, pl_module):
            if death is not None and death.moment == "time":
                threading.Timer(death.share / 2, die).start()

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            pixels = zlib.crc32(batch.image.numpy().tobytes())
            taken = f"{batch_idx} {batch.sample_index.tolist()} {pixels:08x}"
            line = f"{trainer.global_step} {trainer.global_rank} {taken}\n"
            descriptor = os.open(samples, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, line.encode())
            os.close(descriptor)

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if death is not None and death.moment == "step" and trainer.global_step >= death.step:
                die()

        def on_validation_batch_start(self, trainer, pl_module, *_: Any):
            is_due = death is not None and death.moment == "validation"
            if is_due and trainer.state.fn == "fit" and trainer.global_step >= death.step:
                die()

    return Recorder


def die_with_checkpoints(death: Death) -> None:
    """Has the process die in the middle of writing a checkpoint, or around its naming."""
    step = 0

    class Dying(checkpoints.CheckpointFiles):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            nonlocal step
            step = checkpoint["global_step"]
            if death.moment == "writing" and step >= death.step:
                content = io.BytesIO()
                torch.save(checkpoint, content)
                written = content.getvalue()
                Path(path).parent.mkdir(exist_ok=True)
                Path(path).write_bytes(written[: int(death.share * len(written))])
                die()
            super().save_checkpoint(checkpoint, path)

    point = checkpoints._point

    def dying_point(last: Path, newest: Path) -> None:
        if death.moment == "between" and step >= death.step:
            die()
        point(last, newest)
        if death.moment == "written" and step >= death.step:
            die()

    from simmim.training import trainer

    trainer.CheckpointFiles = Dying
    checkpoints._point = dying_point


def train(
    stage: str,
    options: Sequence[str],
    folder: Path,
    death: Death | None = None,
    prepare: Callable[[], None] | None = None,
) -> None:
    """What a forked process does."""
    folder.mkdir(exist_ok=True, parents=True)
    log = (folder / "output.txt").open("a")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    # As in a run of its own: loader workers are forked from it.
    multiprocessing.set_start_method("fork", force=True)
    try:
        if prepare is not None:
            prepare()
        runs.LearningRate = recorder(folder / "samples.txt", death)
        if death is not None:
            die_with_checkpoints(death)
        config = compose(stage, [*options, f"run_dir={folder}"])
        run_stage(stage, config, str(folder))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        sys.exit(1)


def forker() -> Any:
    """Starts processes that have simmim already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["simmim.pretrain.stage", "torture.jobs", "webdataset"])
    return context


def start(*arguments: Any, seconds: float = 240, **named: Any) -> int:
    """Trains in a process of its own; returns its exit code, negative for a signal's number."""
    process = forker().Process(target=train, args=arguments, kwargs=named)
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"{arguments} hangs")
    return process.exitcode


def samples(folder: Path) -> dict[str, set[str]]:
    """By step and rank, the batches that were taken, each once however often a step was made."""
    taken: dict[str, set[str]] = {}
    for line in (folder / "samples.txt").read_text().splitlines():
        step, rank, batch = line.split(" ", 2)
        taken.setdefault(f"{step} {rank}", set()).add(batch)
    return taken


def assert_equal_ends(folder: Path, whole: Path) -> None:
    """The same weights to the bit, the same samples in the same steps, the same rows, one a step."""
    taken, expected_samples = samples(folder), samples(whole)
    others = {key: value for key, value in taken.items() if value != expected_samples[key]}
    assert others == {}, others
    assert taken.keys() == expected_samples.keys()
    names = [path.name for path in whole.glob("*.safetensors")]
    assert names
    for name in names:
        weights, expected = load_file(folder / name), load_file(whole / name)
        assert weights.keys() == expected.keys()
        different = [key for key in expected if not torch.equal(weights[key], expected[key])]
        assert different == [], different
    for row, expected_row in zip(rows(folder), rows(whole), strict=True):
        assert row == expected_row, (row, expected_row)
