"""Runs a training: trains and validates, then writes weights, summary and report."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from simmim.data import ImageDataModule
from simmim.models.swin.compile import compile_blocks
from simmim.training.distributed.fsdp import gather_weights
from simmim.training.loggers.base import FaultTolerantLogger
from simmim.training.module import TrainingModule
from simmim.training.optim import describe_lr
from simmim.training.run import Run, as_plain
from simmim.training.run_dir import config_record
from simmim.training.run_dir.summary import write_summary
from simmim.utils.console import say
from simmim.utils.devices import peak_memory_bytes
from simmim.utils.errors import UserError
from simmim.utils.failure_messages import explained_failures


def announce(run: Run, model: torch.nn.Module, images: ImageDataModule) -> None:
    """Logs the run's directory, model size, data, devices and learning rate."""
    trainer = run.trainer
    kind = type(trainer.accelerator).__name__.removesuffix("Accelerator")
    say(f"run directory {run.options['run_dir']}")
    if run.resumed is not None:
        say(f"going on from {run.resumed.path}")
    say(
        f"{count_parameters(model) / 1e6:.1f}M trained parameters, {len(images.train)} training and "
        f"{len(images.val)} held-out images, {trainer.world_size} × {kind}, {trainer.precision}"
    )
    say(
        describe_lr(
            run.optimization,
            devices=trainer.world_size,
            batch_size=images.batch_size,
            accumulation=trainer.accumulate_grad_batches,
        )
    )


def fit(
    run: Run,
    task: TrainingModule,
    images: ImageDataModule,
    *,
    stage: str,
    started: float,
    untrained: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Trains, validates the final weights, and writes weights and summary.

    `untrained` are validation metrics from before training, which are added to the summary's
    metrics. Returns the summary on rank 0, and an empty dictionary on other ranks.
    """
    begin(run, task, stage, untrained or {})
    train(run, task, images)
    weights = gather_weights(task.model)
    if not run.trainer.is_global_zero:
        return {}
    folder = Path(run.options["run_dir"])
    task.save_weights(folder, weights)
    facts = summarize(run, task, images) | {"seconds": time.monotonic() - started}
    facts["metrics"] |= untrained or {}
    summary = write_summary(folder / "summary.json", {"stage": stage} | facts)
    run.earlier.forget()
    run.report.finish()
    assert run.writer is not None
    run.writer.release()
    return summary


def begin(run: Run, task: TrainingModule, stage: str, untrained: Mapping[str, float]) -> None:
    """Records and logs the run's configuration; raises UserError if it names unknown metrics."""
    logged = [*task.metric_names, *run.extra_metrics]
    run.checkpoints.require_metric(logged)
    require_objective(run.options["objective"], [*logged, *untrained])
    if run.trainer.is_global_zero:
        config_record.record(run.options["run_dir"])
    for logger in run.trainer.loggers:
        logger.log_hyperparams(as_plain(run.options))
    run.report.begin(stage, untrained)


def train(run: Run, task: TrainingModule, images: ImageDataModule) -> None:
    """Trains (from the checkpoint, if resumed), validates the final weights, closes the loggers."""
    trainer = run.trainer
    compile_blocks(task.model.encoder, run.options["compile"])
    with explained_failures(
        batch_size=images.batch_size,
        num_workers=images.num_workers,
        accumulation=trainer.accumulate_grad_batches,
    ):
        trainer.fit(
            task,
            datamodule=images,
            ckpt_path=run.resumed.path if run.resumed else None,
            weights_only=True,
        )
        if task.validated_step != trainer.global_step:
            trainer.validate(task, datamodule=images, verbose=False)
    for logger in trainer.loggers:
        if isinstance(logger, FaultTolerantLogger):
            logger.close()


def summarize(run: Run, task: TrainingModule, images: ImageDataModule) -> dict[str, Any]:
    """The results of the run: metrics, the best checkpoint, counts, speed and memory."""
    trainer, throughput, checkpoints = run.trainer, run.throughput, run.checkpoints
    if throughput.data_wait is not None:
        say(images.describe_wait(throughput.data_wait))
    best = {"step": checkpoints.best_step, checkpoints.monitor: checkpoints.best_value}
    encoder = task.model.encoder
    return {
        "metrics": validation_metrics(trainer),
        "best": best if checkpoints.monitor else None,
        "training_images": len(images.train),
        "unreadable_images": images.report_skipped(),
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "parameters": count_parameters(task.model),
        "encoder_parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "images_per_second": throughput.images_per_second,
        "data_wait": throughput.data_wait,
        "first_step_seconds": throughput.first_step_seconds,
        "peak_memory_bytes": peak_memory_bytes(trainer.strategy.root_device),
    }


def require_objective(objective: str, metrics: Sequence[str]) -> None:
    """Raises UserError unless the summary will contain the metric that a sweep optimises."""
    if objective not in metrics:
        raise UserError(
            f"objective={objective} is no validation metric of this run; use {', '.join(metrics)}"
        )


def validate_untrained(run: Run, task: TrainingModule, images: ImageDataModule) -> dict[str, float]:
    """The validation metrics of the weights that training starts from."""
    trainer = run.trainer
    # These metrics go to the summary. Loggers of a resumed run must not receive an earlier step.
    loggers, trainer.loggers = trainer.loggers, []
    trainer.validate(task, datamodule=images, verbose=False)
    trainer.loggers = loggers
    return validation_metrics(trainer)


def validation_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """The metrics of the last validation."""
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("val/")
    }


def count_parameters(module: torch.nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
