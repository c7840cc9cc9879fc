"""What a run is made of, whatever the stage: trainer, data, length, and what it leaves."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.strategies import DeepSpeedStrategy

from simmim import composed
from simmim.callbacks import (
    Amplitudes,
    Checkpoints,
    Continuation,
    EarlierRun,
    Guards,
    Interruption,
    LearningRate,
    RunProgress,
    Throughput,
    WeightAverage,
    peak_memory_bytes,
)
from simmim.checkpoints.classifier_file import save_classifier
from simmim.checkpoints.encoder_file import save_encoder
from simmim.checkpoints.reading import resumed_step
from simmim.console import say
from simmim.data import ImageDataModule
from simmim.data.samples import Transform
from simmim.data.streams import ImageStream
from simmim.differences import READERS, STEPS, deciding_options, without_places
from simmim.encoder import SwinTransformer
from simmim.encoder.compilation import Compile, check_compile, compile_blocks
from simmim.errors import UserError
from simmim.failures import explained_failures
from simmim.fully_sharded import FullySharded
from simmim.logs import ContinuedLog, ExpendableLog
from simmim.models import Classifier
from simmim.one_writer import OneWriter
from simmim.optim import AdamWRecipe, describe_lr
from simmim.reports import RunReport
from simmim.resuming import require_same_options, require_strategy, resume_checkpoint
from simmim.sharding import gather_weights
from simmim.starting import Start
from simmim.summary import write_summary
from simmim.tasks import ClassificationTask, SimMIMTask
from simmim.tasks.training import TrainingArguments
from simmim.trainer import run_length
from simmim.trainer_options import resolve_precision


class RunOptions(TypedDict):
    """The options that every training stage has."""

    data: DictConfig
    augmentation: DictConfig
    optim: DictConfig
    trainer: DictConfig
    save: DictConfig
    guard: DictConfig
    resume: str
    resume_force: bool
    stop_signals: list[str]
    objective: str
    logger: DictConfig
    report: DictConfig
    seed: int
    run_dir: str
    preflight: Literal["stop", "warn"]
    compile: Compile


class Run(NamedTuple):
    """What trains, whatever the stage: the trainer with its callbacks, and where it writes."""

    trainer: pl.Trainer
    optimization: AdamWRecipe
    throughput: Throughput
    checkpoints: Checkpoints
    report: RunReport
    earlier: EarlierRun
    run_dir: str
    writer: OneWriter | None
    resumed: Path | None
    objective: str
    extra_figures: tuple[str, ...]
    compile: Compile
    resume_force: bool
    configuration: dict[str, Any]


def create_run(
    options: RunOptions,
    of_stage: Mapping[str, Any],
    callbacks: Sequence[pl.Callback],
    extra_figures: tuple[str, ...] = (),
) -> Run:
    """Builds the trainer, and finds the checkpoint that it goes on from, if any.

    `of_stage` are the options that this stage has beside those of all; `extra_figures` are what the
    callbacks log of held-out images beside the task's own.
    """
    check_compile(options["compile"], options["trainer"].accumulate_grad_batches)
    run_dir = options["run_dir"]
    optimization: AdamWRecipe = instantiate(options["optim"])
    throughput = Throughput(options["data"].batch_size, options["trainer"].log_every_n_steps)
    checkpoints: Checkpoints = instantiate(options["save"], run_dir=run_dir)
    report: RunReport = instantiate(options["report"], run_dir=run_dir)
    earlier = EarlierRun(run_dir)
    guards: Guards = instantiate(
        options["guard"], run_dir=run_dir, is_compiling=options["compile"] != "none"
    )
    trainer: pl.Trainer = instantiate(
        options["trainer"],
        clip_norm=optimization.clip_norm,
        longest_wait=guards.time.longest_wait,
        run_dir=run_dir,
        loggers=[instantiate(entry, save_dir=run_dir) for entry in options["logger"].values()],
        # Averages are taken before a checkpoint is written.
        callbacks=[
            *(throughput, RunProgress(throughput), LearningRate(), Amplitudes()),
            *(guards.numbers, *callbacks, Continuation()),
            *(checkpoints, Interruption(checkpoints, options["stop_signals"]), report, earlier),
            guards.time,
        ],
    )
    if isinstance(trainer.strategy, (FullySharded, DeepSpeedStrategy)) and any(
        isinstance(callback, WeightAverage) for callback in callbacks
    ):
        raise UserError(
            "ema.decay keeps a whole second model on each device, and trainer.strategy="
            f"{options['trainer'].strategy} is to share it out; use ema.decay=null, or trainer=ddp"
        )
    writer = OneWriter(run_dir) if trainer.is_global_zero else None
    given = {
        name: OmegaConf.to_container(option, resolve=True)
        if OmegaConf.is_config(option)
        else option
        for name, option in {**options, **of_stage}.items()
    }
    images_a_step = (
        options["data"].batch_size * trainer.world_size * trainer.accumulate_grad_batches
    )
    checkpoints.options = deciding_options(given, images_a_step)
    # What auto stands for depends on the machine.
    kind = "gpu" if trainer.strategy.root_device.type == "cuda" else "cpu"
    checkpoints.options["trainer.precision"] = resolve_precision(options["trainer"].precision, kind)
    resumed = resume_checkpoint(options["resume"], checkpoints.last)
    step = 0
    if resumed is not None:
        require_strategy(resumed, trainer)
        step = resumed_step(resumed)
        checkpoints.remember_best(step)
    for logger in trainer.loggers:
        if isinstance(logger, ContinuedLog):
            logger.go_on_after(step)
    return Run(
        trainer,
        optimization,
        throughput,
        checkpoints,
        report,
        earlier,
        run_dir,
        writer,
        resumed,
        options["objective"],
        extra_figures,
        options["compile"],
        options["resume_force"],
        given,
    )


def create_data(options: RunOptions, encoder: SwinTransformer, run: Run) -> ImageDataModule:
    """The data that `data` names, augmented as `augmentation` says, in the encoder's size."""
    augmentation = instantiate(options["augmentation"], image_size=encoder.image_size)
    images = open_data(
        options["data"],
        encoder,
        augmentation,
        options["seed"],
        run.run_dir,
        goes_on=run.resumed is not None and run.resumed.parent == run.checkpoints.folder,
    )
    images.stop_signals = list(options["stop_signals"])
    # A validation within an epoch has batches ready beside those of training.
    is_within = run.trainer.val_check_interval != 1.0 or run.trainer.check_val_every_n_epoch is None
    images.share_node(run.trainer.num_devices, loaders=2 if is_within else 1)
    return images


def open_data(
    data: DictConfig,
    encoder: SwinTransformer,
    train_transform: Transform | None,
    seed: int,
    run_dir: str,
    *,
    goes_on: bool = False,
) -> ImageDataModule:
    """The data that `data` names in the encoder's size; UserError for other channels than it takes.

    What cannot be read of it is listed in the run directory; a run that `goes_on` adds to its list.
    """
    images: ImageDataModule = instantiate(
        data, image_size=encoder.image_size, train_transform=train_transform, seed=seed
    )
    images.list_skipped(Path(run_dir), goes_on=goes_on)
    channels = len(images.normalisation.mean)
    if channels != encoder.in_channels:
        raise UserError(
            f"the data has {channels} channels and model.in_channels is {encoder.in_channels}; "
            f"use model.in_channels={channels}"
        )
    return images


def training_arguments(
    run: Run, start: Start, images: ImageDataModule, seed: int
) -> TrainingArguments:
    """What every task is told.

    Raises:
        UserError: there is not one whole batch, or the checkpoint is of a run with other options.
    """
    trainer = run.trainer
    share = (trainer.world_size, trainer.accumulate_grad_batches)
    normalisation = start.find_normalisation(images.normalisation)
    steps_per_epoch = images.steps_per_epoch(*share)
    options = without_places(
        run.checkpoints.options, is_stream=isinstance(images.train, ImageStream)
    )
    options |= images.describe_content()
    options["normalisation"] = f"mean {normalisation.mean}, std {normalisation.std}"
    options["weights at the start"] = start.digest()
    options[STEPS] = steps_per_epoch
    if isinstance(images.train, ImageStream):
        options[READERS] = trainer.world_size * max(1, images.num_workers)
    run.checkpoints.options = options
    if run.resumed is not None:
        require_same_options(run.resumed, options, is_forced=run.resume_force)
    images.require_steps(*share)
    require_interval(trainer, steps_per_epoch * trainer.accumulate_grad_batches)
    length = run_length(
        max_epochs=trainer.max_epochs,
        max_steps=trainer.max_steps,
        steps_per_epoch=steps_per_epoch,
    )
    return {
        "normalisation": normalisation,
        "optimization": run.optimization,
        "batch_size": images.batch_size,
        "total_steps": length.total_steps,
        "steps_per_epoch": length.steps_per_epoch,
        "seed": seed,
    }


def require_interval(trainer: pl.Trainer, batches: int) -> None:
    """Raises UserError for a `val_check_interval` that no epoch of so many batches comes to."""
    interval = trainer.val_check_interval
    is_within_epochs = trainer.check_val_every_n_epoch is not None
    if is_within_epochs and isinstance(interval, int) and interval > batches:
        raise UserError(
            f"trainer.val_check_interval={interval} is more than the {batches} batches of an epoch; "
            f"use {batches} or less, or trainer.check_val_every_n_epoch=null to count across epochs"
        )


def announce(run: Run, model: torch.nn.Module, images: ImageDataModule) -> None:
    """Logs what is about to run."""
    trainer = run.trainer
    kind = type(trainer.accelerator).__name__.removesuffix("Accelerator")
    say(f"run directory {run.run_dir}")
    if run.resumed is not None:
        say(f"going on from {run.resumed}")
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
    task: SimMIMTask | ClassificationTask,
    images: ImageDataModule,
    *,
    stage: str,
    started: float,
    figures: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Trains, validates the final weights, and writes weights and summary (rank 0).

    `figures` were measured before and stand in the summary among the others.
    """
    trainer = run.trainer
    logged = [*task.figures, *run.extra_figures]
    run.checkpoints.require_figure(logged)
    require_objective(run.objective, [*logged, *(figures or {})])
    compile_blocks(task.model.encoder, run.compile)
    if trainer.is_global_zero:
        composed.record(run.run_dir)
    for logger in trainer.loggers:
        logger.log_hyperparams(run.configuration)
    run.report.begin(stage, figures)
    with explained_failures(
        batch_size=images.batch_size,
        num_workers=images.num_workers,
        accumulation=trainer.accumulate_grad_batches,
    ):
        trainer.fit(task, datamodule=images, ckpt_path=run.resumed, weights_only=True)
        if task.validated_step != trainer.global_step:
            trainer.validate(task, datamodule=images, verbose=False)
    for logger in trainer.loggers:
        if isinstance(logger, ExpendableLog):
            logger.close()
    weights = gather_weights(task.model)
    if not trainer.is_global_zero:
        return {}
    if run.throughput.data_wait is not None:
        say(images.describe_wait(run.throughput.data_wait))
    folder = Path(run.run_dir)
    encoder = task.model.encoder
    of_encoder = {
        name.removeprefix("encoder."): tensor
        for name, tensor in weights.items()
        if name.startswith("encoder.")
    }
    save_encoder(encoder, folder / "encoder.safetensors", task.normalisation, of_encoder)
    if isinstance(task, ClassificationTask):
        path = folder / "classifier.safetensors"
        assert isinstance(task.model, Classifier)
        save_classifier(
            task.model, path, task.classes, task.normalisation, weights, task.held_out_crop
        )
    best = {"step": run.checkpoints.best_step, run.checkpoints.monitor: run.checkpoints.best_value}
    summary = write_summary(
        folder / "summary.json",
        {
            "stage": stage,
            "metrics": held_out(trainer) | dict(figures or {}),
            "best": best if run.checkpoints.monitor else None,
            "training_images": len(images.train),
            "unreadable_images": images.report_skipped(),
            "steps": trainer.global_step,
            "epochs": trainer.current_epoch,
            "parameters": count_parameters(task.model),
            "encoder_parameters": sum(parameter.numel() for parameter in encoder.parameters()),
            "images_per_second": run.throughput.images_per_second,
            "data_wait": run.throughput.data_wait,
            "first_step_seconds": run.throughput.first_step_seconds,
            "seconds": time.monotonic() - started,
            "peak_memory_bytes": peak_memory_bytes(trainer.strategy.root_device),
        },
    )
    run.earlier.forget()
    run.report.finish()
    assert run.writer is not None
    run.writer.release()
    return summary


def require_objective(objective: str, figures: Sequence[str]) -> None:
    """Raises UserError unless a summary will hold the figure that a sweep is to optimise."""
    if objective not in figures:
        raise UserError(
            f"objective={objective} is no held-out figure of this run; use {', '.join(figures)}"
        )


def validate_untrained(
    run: Run, task: ClassificationTask, images: ImageDataModule
) -> dict[str, float]:
    """The held-out figures of the weights that training starts from."""
    trainer = run.trainer
    # They stand in the summary. A resumed run's loggers must not be told of a step before its own.
    loggers, trainer.loggers = trainer.loggers, []
    trainer.validate(task, datamodule=images, verbose=False)
    trainer.loggers = loggers
    return held_out(trainer)


def held_out(trainer: pl.Trainer) -> dict[str, float]:
    """The figures of the last validation."""
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("val/")
    }


def count_parameters(module: torch.nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
