"""Runs pretraining as its command does, and something in it takes long or never returns.

What does, HANG says: `step`, the third training step of rank 1; `loader`, the loading of the second
epoch; `long`, what is allowed to: the first step, and writing a checkpoint.
"""

import os
import time
from typing import Any

from simmim.cli.main import run_command
from simmim.data.dataset import SampleKey, TransformedImages
from simmim.pretrain.module import SimMIMModule
from simmim.training.callbacks.checkpoint import CheckpointFiles

LONG_SECONDS = 6.0

training_step = SimMIMModule.training_step
load_image = TransformedImages.__getitem__
save_checkpoint = CheckpointFiles.save_checkpoint


def take_step(task: SimMIMModule, *arguments: Any) -> Any:
    """The task's own, if at all."""
    if os.environ["HANG"] == "step" and task.global_rank == 1 and task.global_step == 2:
        time.sleep(1e6)
    if os.environ["HANG"] == "long" and task.global_step == 0:
        time.sleep(LONG_SECONDS)
    return training_step(task, *arguments)


def load(images: TransformedImages, key: SampleKey) -> Any:
    """The image, if at all."""
    if os.environ["HANG"] == "loader" and key.epoch == 1:
        time.sleep(1e6)
    return load_image(images, key)


def save(files: CheckpointFiles, *arguments: Any, **options: Any) -> None:
    """In its own time."""
    if os.environ["HANG"] == "long":
        time.sleep(LONG_SECONDS)
    save_checkpoint(files, *arguments, **options)


SimMIMModule.training_step = take_step  # type: ignore[method-assign]
TransformedImages.__getitem__ = load  # type: ignore[method-assign]
CheckpointFiles.save_checkpoint = save  # type: ignore[method-assign]

if __name__ == "__main__":
    run_command("pretrain")
