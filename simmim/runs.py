"""What a run is made of, whatever the stage: trainer, data, length, and what it leaves."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.strategies import DeepSpeedStrategy

from simmim.callbacks import (
    Checkpoints,
    Interruption,
    LearningRate,
    RunProgress,
    Throughput,
    WeightAverage,
    peak_memory_bytes,
)
from simmim.checkpoints.classifier_file import save_classifier
from simmim.checkpoints.deepspeed import is_deepspeed, require_harmless
from simmim.checkpoints.encoder_file import save_encoder
from simmim.checkpoints.reading import require_resumable, resumed_step
from simmim.checkpoints.sharded import is_distributed, read_rest
from simmim.console import say
from simmim.data import ImageDataModule
from simmim.data.samples import Transform
from simmim.encoder import SwinTransformer
from simmim.errors import UserError
from simmim.fully_sharded import FullySharded
from simmim.models import Classifier
from simmim.normalisation import Normalisation
from simmim.optim import AdamWRecipe, describe_lr
from simmim.reports import RunReport
from simmim.sharding import gather_weights
from simmim.summary import write_summary
from simmim.tasks import ClassificationTask, SimMIMTask
from simmim.tasks.training import TrainingArguments
from simmim.trainer import run_length


class RunOptions(TypedDict):
    """The options that every training stage has."""

    data: DictConfig
    augmentation: DictConfig
    optim: DictConfig
    trainer: DictConfig
    save: DictConfig
    resume: str
    objective: str
    logger: DictConfig
    report: DictConfig
    seed: int
    run_dir: str
    preflight: Literal["stop", "warn"]


class Run(NamedTuple):
    """What trains, whatever the stage: the trainer with its callbacks, and where it writes."""

    trainer: pl.Trainer
    optimization: AdamWRecipe
    throughput: Throughput
    checkpoints: Checkpoints
    report: RunReport
    run_dir: str
    resumed: Path | None
    objective: str
    extra_figures: tuple[str, ...]


def create_run(
    options: RunOptions, callbacks: Sequence[pl.Callback], extra_figures: tuple[str, ...] = ()
) -> Run:
    """Builds the trainer, and finds the checkpoint that it goes on from, if any.

    `extra_figures` are what the callbacks log of held-out images beside the task's own.
    """
    run_dir = options["run_dir"]
    optimization: AdamWRecipe = instantiate(options["optim"])
    throughput = Throughput(options["data"].batch_size, options["trainer"].log_every_n_steps)
    checkpoints: Checkpoints = instantiate(options["save"], run_dir=run_dir)
    report: RunReport = instantiate(options["report"], run_dir=run_dir)
    trainer: pl.Trainer = instantiate(
        options["trainer"],
        clip_norm=optimization.clip_norm,
        run_dir=run_dir,
        loggers=[instantiate(entry, save_dir=run_dir) for entry in options["logger"].values()],
        # Averages are taken before a checkpoint is written.
        callbacks=[
            *(throughput, RunProgress(throughput), LearningRate(), *callbacks, checkpoints),
            *(Interruption(checkpoints), report),
        ],
    )
    if isinstance(trainer.strategy, (FullySharded, DeepSpeedStrategy)) and any(
        isinstance(callback, WeightAverage) for callback in callbacks
    ):
        raise UserError(
            "ema.decay keeps a whole second model on each device, and trainer.strategy="
            f"{options['trainer'].strategy} is to share it out; use ema.decay=null, or trainer=ddp"
        )
    resumed = resume_checkpoint(options["resume"], checkpoints.last)
    if resumed is not None:
        require_strategy(resumed, trainer)
        checkpoints.remember_best(resumed_step(resumed))
    return Run(
        trainer,
        optimization,
        throughput,
        checkpoints,
        report,
        run_dir,
        resumed,
        options["objective"],
        extra_figures,
    )


def require_strategy(resumed: Path, trainer: pl.Trainer) -> None:
    """Raises UserError for a checkpoint that this strategy cannot go on from."""
    strategy = trainer.strategy
    whole = f"python -m simmim.export checkpoint={resumed} format=checkpoint output=whole.ckpt"
    if is_distributed(resumed) and not isinstance(strategy, FullySharded):
        raise UserError(
            f"{resumed} was written in parts by trainer=fsdp; use that, or {whole} and "
            "resume=whole.ckpt"
        )
    if is_deepspeed(resumed):
        processes = read_rest(resumed, map_location="meta")["dp_world_size"]
        if not isinstance(strategy, DeepSpeedStrategy) or trainer.world_size != processes:
            raise UserError(
                f"{resumed} was written in parts by trainer=deepspeed_zero1 on {processes} devices; "
                f"use both again, or {whole} and resume=whole.ckpt with trainer=fsdp or ddp"
            )
        try:
            require_harmless(resumed, trainer.global_rank)
        except Exception as error:  # torch raises many kinds for a damaged or foreign file
            first_line = str(error).splitlines()[0]
            raise UserError(
                f"{resumed} is damaged or holds more than weights ({first_line}); set resume= to "
                "another one"
            ) from error
    elif isinstance(strategy, DeepSpeedStrategy):
        raise UserError(
            f"{resumed} was not written by trainer=deepspeed_zero1, which goes on from its own "
            "checkpoints alone; use trainer=fsdp or ddp, or start anew with its weights: "
            f"init.checkpoint={resumed} resume=never"
        )


def resume_checkpoint(resume: str, last: Path) -> Path | None:
    """The checkpoint that a run goes on from: `auto` its own last one, `never`, or a path.

    A path is where a run begins: started again, it goes on from its own last one, if that is farther.
    A job that SLURM has queued again goes on whatever `resume` says.
    """
    if last.is_symlink() and not last.exists():
        raise UserError(
            f"{last} points to a checkpoint that is gone; set resume= to another one, "
            "or resume=never to start anew"
        )
    is_requeued = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
    if resume == "auto" or (resume == "never" and is_requeued):
        path = last
    elif resume == "never":
        return None
    else:
        path = Path(resume)
        if not path.exists():
            raise UserError(
                f"resume={resume} does not exist; use auto, never or a checkpoint's path"
            )
    if not path.exists():
        return None
    require_resumable(path)
    if path != last and last.exists():
        require_resumable(last)
        if resumed_step(last) >= resumed_step(path):
            return last
    return path


def create_data(options: RunOptions, encoder: SwinTransformer) -> ImageDataModule:
    """The data that `data` names, augmented as `augmentation` says, in the encoder's size."""
    augmentation = instantiate(options["augmentation"], image_size=encoder.image_size)
    return open_data(options["data"], encoder, augmentation, options["seed"])


def open_data(
    data: DictConfig, encoder: SwinTransformer, train_transform: Transform | None, seed: int
) -> ImageDataModule:
    """The data that `data` names in the encoder's size; UserError for other channels than it takes."""
    images: ImageDataModule = instantiate(
        data, image_size=encoder.image_size, train_transform=train_transform, seed=seed
    )
    channels = len(images.normalisation.mean)
    if channels != encoder.in_channels:
        raise UserError(
            f"the data has {channels} channels and model.in_channels is {encoder.in_channels}; "
            f"use model.in_channels={channels}"
        )
    return images


def training_arguments(
    run: Run, images: ImageDataModule, normalisation: Normalisation, seed: int
) -> TrainingArguments:
    """What every task is told; UserError where there is not one whole batch."""
    trainer = run.trainer
    share = (trainer.world_size, trainer.accumulate_grad_batches)
    images.require_steps(*share)
    length = run_length(
        max_epochs=trainer.max_epochs,
        max_steps=trainer.max_steps,
        steps_per_epoch=images.steps_per_epoch(*share),
    )
    return {
        "normalisation": normalisation,
        "optimization": run.optimization,
        "batch_size": images.batch_size,
        "total_steps": length.total_steps,
        "steps_per_epoch": length.steps_per_epoch,
        "seed": seed,
    }


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
    run.report.begin(stage, figures)
    trainer.fit(task, datamodule=images, ckpt_path=run.resumed, weights_only=True)
    if task.validated_step != trainer.global_step:
        trainer.validate(task, datamodule=images, verbose=False)
    weights = gather_weights(task.model)
    if not trainer.is_global_zero:
        return {}
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
        save_classifier(task.model, path, task.classes, task.normalisation, weights)
    best = {"step": run.checkpoints.best_step, run.checkpoints.monitor: run.checkpoints.best_value}
    summary = write_summary(
        folder / "summary.json",
        {
            "stage": stage,
            "metrics": held_out(trainer) | dict(figures or {}),
            "best": best if run.checkpoints.monitor else None,
            "training_images": len(images.train),
            "steps": trainer.global_step,
            "epochs": trainer.current_epoch,
            "parameters": count_parameters(task.model),
            "encoder_parameters": sum(parameter.numel() for parameter in encoder.parameters()),
            "images_per_second": run.throughput.images_per_second,
            "first_step_seconds": run.throughput.first_step_seconds,
            "seconds": time.monotonic() - started,
            "peak_memory_bytes": peak_memory_bytes(trainer.strategy.root_device),
        },
    )
    run.report.finish()
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
