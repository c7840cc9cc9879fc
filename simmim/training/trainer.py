"""Creates the Lightning Trainer for this machine, or explains why it cannot."""

import logging
import os
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.loggers import Logger

from simmim.training.callbacks.checkpoint import CheckpointFiles
from simmim.training.distributed.strategies import (
    Launch,
    create_strategy,
    find_launch,
    launch_environments,
    lightning_precision,
    warn_of_stale_store,
)
from simmim.training.options import resolve_precision
from simmim.utils.errors import UserError

# Lightning reports devices that it does not use, and advertises its makers' products.
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
for _untrue_here in (
    ".*is deprecated, use `isinstance.treespec, TreeSpec.*",
    ".*smaller than the logging interval.*",  # short epochs are not a mistake
    ".*your dataloader is not resumable.*",  # data.samplers resumes at the next batch
    ".*does not have many workers.*",
    ".*`srun` command is available.*",  # a run may be started without srun
    ".*overridden `on_before_batch_transfer` in `LightningModule`.*",  # the data module lacks it
    ".*the default `LightningModule.configure_gradient_clipping`.*",  # DeepSpeed clips the same way
    ".*when logging on epoch level in distributed setting.*",  # torchmetrics already reduced them
):
    warnings.filterwarnings("ignore", message=_untrue_here)


def create_trainer(
    *,
    accelerator: str,
    devices: int | str | Sequence[int],
    num_nodes: int | str,
    strategy: str,
    sharded_checkpoints: bool,
    precision: str | int,
    max_epochs: int | None,
    max_steps: int,
    accumulate_grad_batches: int,
    check_val_every_n_epoch: int | None,
    val_check_interval: int | float | None,
    log_every_n_steps: int,
    deterministic: bool,
    clip_norm: float | None,
    run_dir: str | Path,
    loggers: Sequence[Logger],
    callbacks: Sequence[pl.Callback],
    longest_wait: timedelta | None = None,
) -> pl.Trainer:
    """Creates the Trainer of a run; `precision` auto is bf16 on GPUs that support it, else float32.

    `devices` and `num_nodes` auto follow the processes that torchrun or srun started; without a
    launcher they are all GPUs of this machine, or one process on the CPU. `clip_norm` is the
    maximum gradient norm (None: no clipping); `longest_wait` is PyTorch's timeout for waiting on
    other processes (None: its default). All others are arguments of Lightning's Trainer:
    `max_epochs` and `max_steps` (-1: no end), `accumulate_grad_batches`, `check_val_every_n_epoch`,
    `val_check_interval`, `log_every_n_steps`, `deterministic`, `loggers` and `callbacks`.

    Raises:
        UserError: an accelerator or devices that this machine does not have or that contradict the
            launcher, an unknown precision or strategy, or a run without an end.
    """
    launch = find_launch()
    warn_of_stale_store()
    devices, num_nodes = agree_with(launch, devices, num_nodes)
    accelerator = available_accelerator(accelerator, devices)
    precision = resolve_precision(precision, accelerator)
    require_counts(
        max_epochs=max_epochs,
        max_steps=max_steps,
        num_nodes=num_nodes,
        accumulate_grad_batches=accumulate_grad_batches,
        log_every_n_steps=log_every_n_steps,
        check_val_every_n_epoch=check_val_every_n_epoch,
        val_check_interval=val_check_interval,
    )
    try:
        return pl.Trainer(
            accelerator=accelerator,
            devices=devices if isinstance(devices, (int, str)) else list(devices),
            num_nodes=num_nodes,
            strategy=create_strategy(
                strategy,
                devices=count_devices(accelerator, devices) * num_nodes,
                precision=precision,
                sharded_checkpoints=sharded_checkpoints,
                longest_wait=longest_wait,
            ),
            plugins=[*launch_environments(launch), CheckpointFiles()],
            precision=lightning_precision(strategy, precision),  # type: ignore[arg-type]
            max_epochs=max_epochs,
            max_steps=max_steps,
            accumulate_grad_batches=accumulate_grad_batches,
            check_val_every_n_epoch=check_val_every_n_epoch,
            val_check_interval=val_check_interval,
            log_every_n_steps=log_every_n_steps,
            gradient_clip_val=clip_norm,
            deterministic=deterministic,
            benchmark=not deterministic,
            # After a validation in inference mode, training could not update the metrics' states.
            inference_mode=False,
            default_root_dir=run_dir,
            logger=list(loggers),
            callbacks=list(callbacks),
            enable_checkpointing=False,  # callbacks.Checkpoints writes them
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # data.samplers assigns samples to ranks
        )
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"Lightning cannot run this trainer: {error}") from error


def require_counts(
    *,
    max_epochs: int | None,
    max_steps: int,
    check_val_every_n_epoch: int | None,
    val_check_interval: int | float | None,
    **positive: int,
) -> None:
    """Raises UserError for a run without an end, and for counts that are not `positive`."""
    if (max_epochs is None or max_epochs < 0) and max_steps < 0:
        raise UserError(
            "the run has no end; set trainer.max_epochs=100 or trainer.max_steps=100000"
        )
    for name, value in positive.items():
        if value < 1:
            raise UserError(f"trainer.{name} {value} is not positive; use 1 or more")
    if check_val_every_n_epoch is not None and check_val_every_n_epoch < 1:
        raise UserError(
            f"trainer.check_val_every_n_epoch {check_val_every_n_epoch} is not positive; use 1 or more "
            "(a run validates at its end in any case)"
        )
    if val_check_interval is not None and val_check_interval <= 0:
        raise UserError(
            f"trainer.val_check_interval {val_check_interval} is not positive; use batches, or null"
        )


def agree_with(
    launch: Launch | None, devices: int | str | Sequence[int], num_nodes: int | str
) -> tuple[int | str | Sequence[int], int]:
    """Devices per node and number of nodes: the launcher's, if there is one, else the options'.

    Raises:
        UserError: an option contradicts the launcher, or `num_nodes` is neither a number nor auto.
    """
    if isinstance(num_nodes, str) and num_nodes != "auto":
        raise UserError(f"trainer.num_nodes={num_nodes} is neither a number nor auto; use auto")
    if launch is None:
        return devices, 1 if isinstance(num_nodes, str) else num_nodes
    listed = devices if isinstance(devices, (int, str)) else len(devices)
    for name, value, started in (
        ("devices", listed, launch.processes_per_node),
        ("num_nodes", num_nodes, launch.nodes),
    ):
        if str(value) not in ("auto", "-1", str(started)):
            raise UserError(
                f"trainer.{name}={value}, and {launch.program} started {launch.processes_per_node} "
                f"processes on each of {launch.nodes} nodes; use trainer.{name}={started}, or auto"
            )
    return launch.processes_per_node if isinstance(devices, (int, str)) else devices, launch.nodes


def count_devices(accelerator: str, devices: int | str | Sequence[int]) -> int:
    """Number of devices that a run uses on this machine."""
    if str(devices) in ("auto", "-1"):
        return torch.cuda.device_count() if accelerator == "gpu" else 1
    return int(devices) if isinstance(devices, (int, str)) else len(devices)


class RunLength(NamedTuple):
    """The planned length of a run, in optimiser steps."""

    total_steps: int
    steps_per_epoch: int


def run_length(*, max_epochs: int | None, max_steps: int, steps_per_epoch: int) -> RunLength:
    """The run ends at `max_epochs` or at `max_steps`, whichever comes first."""
    ends = [max_steps] if max_steps >= 0 else []
    if max_epochs is not None and max_epochs >= 0:
        ends.append(max_epochs * steps_per_epoch)
    return RunLength(min(ends), steps_per_epoch)


def available_accelerator(accelerator: str, devices: int | str | Sequence[int]) -> str:
    """Resolves `accelerator` auto; raises UserError if this machine lacks it or the `devices`."""
    there = {"gpu": torch.cuda.device_count(), "cpu": os.cpu_count() or 1}
    if torch.backends.mps.is_available():
        there["mps"] = 1
    if accelerator == "auto":
        accelerator = next(kind for kind in ("gpu", "mps", "cpu") if there.get(kind))
    if accelerator == "cuda":
        accelerator = "gpu"
    if accelerator not in ("gpu", "mps", "cpu"):
        raise UserError(f"trainer.accelerator={accelerator} is unknown; use auto, gpu, mps or cpu")
    count = there.get(accelerator, 0)
    if count == 0:
        raise UserError(
            f"this machine has no {accelerator.upper()}; use trainer=auto or trainer=cpu"
        )
    if devices == "auto":
        return accelerator
    if isinstance(devices, str):
        if not devices.lstrip("-").isdigit():
            raise UserError(f"trainer.devices={devices} is neither a number nor auto; use auto")
        devices = int(devices)
    if accelerator != "gpu" and not isinstance(devices, int):
        raise UserError(
            f"trainer.devices={list(devices)} names GPUs, and the run is on the {accelerator.upper()}; "
            "use a number"
        )
    wanted = devices if isinstance(devices, int) else max(devices, default=-1) + 1
    if devices == -1 and accelerator == "gpu":
        return accelerator
    what = "CPU cores" if accelerator == "cpu" else f"{accelerator.upper()}s"
    if wanted < 1:
        raise UserError(f"trainer.devices={devices} names no device; use 1 to {count}, or auto")
    if wanted > count:
        raise UserError(
            f"trainer.devices={devices} is more than this machine's {count} {what}; "
            f"use trainer.devices={count} or fewer, or auto"
        )
    return accelerator
