"""Creates the parts of a training run of any stage: trainer, callbacks, data and length."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypedDict, runtime_checkable

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.strategies import DeepSpeedStrategy

from simmim.checkpoints.model_init import ModelInit
from simmim.checkpoints.run_state import RunState
from simmim.data import ImageDataModule
from simmim.data.sources.streams import ImageStream
from simmim.models.swin import SwinTransformer
from simmim.models.swin.compile import Compile, check_compile
from simmim.training.callbacks import (
    Amplitudes,
    Checkpoints,
    Guards,
    LearningRate,
    PendingStep,
    Preemption,
    PreviousRunBackup,
    RunProgress,
    Throughput,
    WeightAverage,
)
from simmim.training.distributed.fsdp import FullySharded
from simmim.training.loggers.base import ResumableLogger
from simmim.training.module import TrainingArguments
from simmim.training.open_data import open_data
from simmim.training.optim import AdamWRecipe
from simmim.training.options import resolve_precision
from simmim.training.run_dir.config_diff import READERS, STEPS, result_options, without_places
from simmim.training.run_dir.lock import RunDirLock
from simmim.training.run_dir.resume import (
    require_same_options,
    require_strategy,
    resume_checkpoint,
)
from simmim.training.trainer import run_length
from simmim.utils.errors import UserError


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


@runtime_checkable
class RunPage(Protocol):
    """The callback that writes a run's report: `simmim.report.callback.RunReport`."""

    def begin(self, stage: str, untrained: Mapping[str, float] | None = None) -> None:
        """Records the stage; `untrained` are validation metrics from before training."""

    def finish(self) -> None:
        """Writes the report of a finished run."""


class Run(NamedTuple):
    """The parts of a training run of any stage, and the options that they were created from.

    Attributes:
        resumed: the state of the checkpoint that the run resumes from, if any.
        writer: the lock of the run directory, on rank 0 only.
        extra_metrics: names of validation metrics that callbacks log in addition to the task's.
    """

    options: RunOptions
    trainer: pl.Trainer
    optimization: AdamWRecipe
    throughput: Throughput
    checkpoints: Checkpoints
    report: RunPage
    earlier: PreviousRunBackup
    writer: RunDirLock | None
    resumed: RunState | None
    extra_metrics: tuple[str, ...]


def create_run(
    options: RunOptions,
    report: RunPage,
    callbacks: Sequence[pl.Callback],
    extra_metrics: tuple[str, ...] = (),
) -> Run:
    """Creates the trainer, and finds the checkpoint that the run resumes from, if any.

    `options` are all options of the stage; when a run is resumed, those that affect the result are
    compared with the checkpoint's.
    """
    check_compile(options["compile"], options["trainer"].accumulate_grad_batches)
    run_dir = options["run_dir"]
    optimization: AdamWRecipe = instantiate(options["optim"])
    throughput = Throughput(options["data"].batch_size, options["trainer"].log_every_n_steps)
    checkpoints: Checkpoints = instantiate(options["save"], run_dir=run_dir)
    earlier = PreviousRunBackup(run_dir)
    guards: Guards = instantiate(
        options["guard"], run_dir=run_dir, is_compiling=options["compile"] != "none"
    )
    trainer: pl.Trainer = instantiate(
        options["trainer"],
        clip_norm=optimization.clip_norm,
        longest_wait=guards.time.longest_wait,
        run_dir=run_dir,
        loggers=[instantiate(entry, save_dir=run_dir) for entry in options["logger"].values()],
        # The weight average is updated before a checkpoint is written.
        callbacks=[
            *(throughput, RunProgress(throughput), LearningRate(), Amplitudes()),
            *(guards.numbers, *callbacks, PendingStep()),
            *(checkpoints, Preemption(checkpoints, options["stop_signals"]), report, earlier),
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
    writer = RunDirLock(run_dir) if trainer.is_global_zero else None
    images_a_step = (
        options["data"].batch_size * trainer.world_size * trainer.accumulate_grad_batches
    )
    checkpoints.options = result_options(as_plain(options), images_a_step)
    # What auto resolves to depends on the machine.
    kind = "gpu" if trainer.strategy.root_device.type == "cuda" else "cpu"
    checkpoints.options["trainer.precision"] = resolve_precision(options["trainer"].precision, kind)
    resumed = resume_checkpoint(options["resume"], checkpoints.last)
    step = 0
    if resumed is not None:
        require_strategy(resumed, trainer)
        step = resumed.step
        checkpoints.remember_best(step)
    for logger in trainer.loggers:
        if isinstance(logger, ResumableLogger):
            logger.go_on_after(step)
    return Run(
        options=options,
        trainer=trainer,
        optimization=optimization,
        throughput=throughput,
        checkpoints=checkpoints,
        report=report,
        earlier=earlier,
        writer=writer,
        resumed=resumed,
        extra_metrics=extra_metrics,
    )


def as_plain(options: RunOptions) -> dict[str, Any]:
    """The options as dictionaries and lists, with all interpolations resolved."""
    return {
        name: OmegaConf.to_container(option, resolve=True)
        if OmegaConf.is_config(option)
        else option
        for name, option in options.items()
    }


def create_data(
    run: Run, encoder: SwinTransformer, data: DictConfig | None = None
) -> ImageDataModule:
    """Creates the data module of `data` (None: the run's options) at the encoder's image size."""
    options = run.options
    augmentation = instantiate(options["augmentation"], image_size=encoder.image_size)
    images = open_data(
        options["data"] if data is None else data,
        encoder,
        augmentation,
        options["seed"],
        options["run_dir"],
        goes_on=run.resumed is not None and run.resumed.path.parent == run.checkpoints.folder,
    )
    images.stop_signals = list(options["stop_signals"])
    # During a validation within an epoch, training's loader has batches ready too.
    is_within = run.trainer.val_check_interval != 1.0 or run.trainer.check_val_every_n_epoch is None
    images.share_node(run.trainer.num_devices, loaders=2 if is_within else 1)
    return images


def training_arguments(run: Run, start: ModelInit, images: ImageDataModule) -> TrainingArguments:
    """The arguments of every training task.

    Raises:
        UserError: the data has fewer images than one step takes, `val_check_interval` is longer
            than an epoch, or the checkpoint is of a run with other options.
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
        require_same_options(run.resumed, options, is_forced=run.options["resume_force"])
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
        "seed": run.options["seed"],
    }


def require_interval(trainer: pl.Trainer, batches: int) -> None:
    """Raises UserError for a `val_check_interval` that is longer than an epoch of this many batches."""
    interval = trainer.val_check_interval
    is_within_epochs = trainer.check_val_every_n_epoch is not None
    if is_within_epochs and isinstance(interval, int) and interval > batches:
        raise UserError(
            f"trainer.val_check_interval={interval} is more than the {batches} batches of an epoch; "
            f"use {batches} or less, or trainer.check_val_every_n_epoch=null to count across epochs"
        )
