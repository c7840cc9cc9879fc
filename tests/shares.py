"""`shares.py STAGE OPTIONS…` runs a stage as its command does, and has each process tell what it holds.

Writes `shares-RANK.json` to the working directory: numbers of parameters and of optimiser states as
tensors of this process, and its peak memory.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.distributed.tensor import DTensor

from simmim.cli.main import run_command
from simmim.utils.devices import peak_memory_bytes


def here(tensor: torch.Tensor) -> int:
    """Numbers of a tensor that lie in this process."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel()


def fit(trainer: pl.Trainer, task: pl.LightningModule, **options: Any) -> None:
    """Lightning's, and what there is after it."""
    lightnings_fit(trainer, task, **options)
    states = [
        value
        for state in trainer.optimizers[0].state.values()
        for value in state.values()
        if value.ndim
    ]
    shares = {
        "parameters": sum(here(parameter) for parameter in task.parameters()),
        "whole": sum(parameter.numel() for parameter in task.parameters()),
        "states": sum(here(state) for state in states),
        "peak_memory_bytes": peak_memory_bytes(trainer.strategy.root_device),
    }
    Path(f"shares-{trainer.global_rank}.json").write_text(json.dumps(shares))


lightnings_fit = pl.Trainer.fit
pl.Trainer.fit = fit  # type: ignore[assignment,method-assign]

if __name__ == "__main__":
    run_command(sys.argv.pop(1))
