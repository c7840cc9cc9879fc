"""The stages, each a story from configuration to run directory, readable top to bottom.

What can be wrong with a configuration is found before data is read, and what can be wrong with the
data before weights are allocated: the encoder is first built on the meta device.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only

from simmim.callbacks import Checkpoints, LearningRate, RunProgress, Throughput, peak_memory_bytes
from simmim.checkpoints.encoder_file import save_encoder
from simmim.checkpoints.loading import Initialisation, load_encoder_weights
from simmim.checkpoints.reading import Weights, read_weights, require_resumable
from simmim.data import ImageDataModule
from simmim.encoder import SwinTransformer
from simmim.errors import UserError
from simmim.losses import check_target_window
from simmim.models import Classifier, SimMIM
from simmim.optim import AdamWRecipe, describe_lr
from simmim.summary import write_summary
from simmim.tasks import ClassificationTask, SimMIMTask
from simmim.tasks.classification import Mode
from simmim.trainer import RunLength, run_length

log = logging.getLogger(__name__)


@rank_zero_only
def say(message: str) -> None:
    """Logs for the user, once however many devices there are."""
    log.info(message)


def pretrain(
    *,
    model: DictConfig,
    data: DictConfig,
    augmentation: DictConfig,
    mask: DictConfig,
    target_window: int | None,
    optim: DictConfig,
    trainer: DictConfig,
    init: DictConfig,
    save: DictConfig,
    resume: str,
    reconstructions: DictConfig,
    logger: DictConfig,
    seed: int,
    run_dir: str,
) -> dict[str, Any]:
    """SimMIM pretraining: mask, reconstruct, and leave an encoder. Returns the summary."""
    started = time.monotonic()
    initialisation: Initialisation = instantiate(init)
    start = read_start(initialisation)
    inherited = inherit(model, start)
    with torch.device("meta"):
        planned: SwinTransformer = instantiate(model, **inherited)
    if target_window is not None:
        check_target_window(target_window)
    mask_generator = instantiate(
        mask, image_size=planned.image_size, token_size=planned.patch_size, seed=seed
    )
    pictures = instantiate(reconstructions, run_dir=run_dir)
    run = create_run(trainer, optim, save, resume, logger, data, run_dir, [pictures])
    images = create_data(data, augmentation, planned, seed)
    length = measure(run.trainer, images)

    pl.seed_everything(seed, verbose=False)
    encoder: SwinTransformer = instantiate(model, **inherited)
    start_from(encoder, start, initialisation)
    task = SimMIMTask(
        SimMIM(encoder),
        mask_generator=mask_generator,
        normalisation=images.normalisation,
        optimization=run.optimization,
        batch_size=images.batch_size,
        total_steps=length.total_steps,
        steps_per_epoch=length.steps_per_epoch,
        seed=seed,
        target_window=target_window,
    )
    announce(run, task.model, images)
    summary = fit(run, task, encoder, images, stage="pretrain", started=started)
    if summary:
        metrics = summary["metrics"]
        say(
            f"held-out masked L1 {metrics['val/loss']:.4f}, {metrics['val/loss_over_baseline']:.2f} "
            f"of predicting each image's visible mean ({metrics['val/baseline_visible_mean']:.4f})"
        )
        say(f"finished in {summary['seconds']:.0f} s: {run_dir}")
    return summary


def finetune(
    *,
    model: DictConfig,
    data: DictConfig,
    augmentation: DictConfig,
    mixing: DictConfig,
    mode: Mode,
    optim: DictConfig,
    trainer: DictConfig,
    init: DictConfig,
    save: DictConfig,
    resume: str,
    logger: DictConfig,
    seed: int,
    run_dir: str,
) -> dict[str, Any]:
    """Supervised training of an encoder and a linear head. Returns the summary."""
    started = time.monotonic()
    initialisation: Initialisation = instantiate(init)
    start = read_start(initialisation)
    inherited = inherit(model, start)
    with torch.device("meta"):
        planned: SwinTransformer = instantiate(model, **inherited)
    run = create_run(trainer, optim, save, resume, logger, data, run_dir, [])
    images = create_data(data, augmentation, planned, seed)
    classes = images.require_classes()
    mixup = instantiate(mixing, num_classes=len(classes), batch_size=images.batch_size)
    length = measure(run.trainer, images)

    pl.seed_everything(seed, verbose=False)
    encoder: SwinTransformer = instantiate(model, **inherited)
    start_from(encoder, start, initialisation)
    task = ClassificationTask(
        Classifier(encoder, len(classes)),
        classes=classes,
        normalisation=images.normalisation,
        optimization=run.optimization,
        batch_size=images.batch_size,
        total_steps=length.total_steps,
        steps_per_epoch=length.steps_per_epoch,
        seed=seed,
        mode=mode,
        mixup=mixup,
        label_smoothing=mixing.label_smoothing,
    )
    announce(run, task.model, images)
    summary = fit(run, task, encoder, images, stage="finetune", started=started)
    if summary:
        metrics = summary["metrics"]
        say(f"held-out top-1 {metrics['val/top1']:.1%}, top-5 {metrics['val/top5']:.1%}")
        say(f"finished in {summary['seconds']:.0f} s: {run_dir}")
    return summary


class Run(NamedTuple):
    """What trains, whatever the stage: the trainer with its callbacks, and where it writes."""

    trainer: pl.Trainer
    optimization: AdamWRecipe
    throughput: Throughput
    run_dir: str
    resumed: Path | None


def create_run(
    trainer: DictConfig,
    optim: DictConfig,
    save: DictConfig,
    resume: str,
    logger: DictConfig,
    data: DictConfig,
    run_dir: str,
    callbacks: Sequence[pl.Callback],
) -> Run:
    """Builds the trainer, and finds the checkpoint that it goes on from, if any."""
    optimization: AdamWRecipe = instantiate(optim)
    throughput = Throughput(data.batch_size, trainer.log_every_n_steps)
    checkpoints: Checkpoints = instantiate(save, run_dir=run_dir)
    built: pl.Trainer = instantiate(
        trainer,
        clip_norm=optimization.clip_norm,
        run_dir=run_dir,
        loggers=[instantiate(entry, save_dir=run_dir) for entry in logger.values()],
        callbacks=[
            throughput,
            RunProgress(throughput),
            checkpoints,
            LearningRate(),
            *callbacks,
        ],
    )
    resumed = resume_checkpoint(resume, checkpoints.last)
    return Run(built, optimization, throughput, run_dir, resumed)


def resume_checkpoint(resume: str, last: Path) -> Path | None:
    """The checkpoint that a run goes on from: `auto` its own last one, `never`, or a path."""
    if resume == "never" or (resume == "auto" and not last.exists()):
        return None
    path = last if resume == "auto" else Path(resume)
    if not path.is_file():
        raise UserError(f"resume={resume} does not exist; use auto, never or a checkpoint's path")
    require_resumable(path)
    return path


def create_data(
    data: DictConfig, augmentation: DictConfig, encoder: SwinTransformer, seed: int
) -> ImageDataModule:
    """The data that `data` names, augmented as `augmentation` says, in the encoder's size."""
    images: ImageDataModule = instantiate(
        data,
        image_size=encoder.image_size,
        train_transform=instantiate(augmentation, image_size=encoder.image_size),
        seed=seed,
    )
    channels = len(images.normalisation.mean)
    if channels != encoder.in_channels:
        raise UserError(
            f"the data has {channels} channels and model.in_channels is {encoder.in_channels}; "
            f"use model.in_channels={channels}"
        )
    return images


def measure(trainer: pl.Trainer, images: ImageDataModule) -> RunLength:
    """How long the run will be; UserError where there is not one whole batch."""
    images.require_batches(trainer.world_size)
    return run_length(
        max_epochs=trainer.max_epochs,
        max_steps=trainer.max_steps,
        batches_per_epoch=images.batches_per_epoch(trainer.world_size),
        accumulation=trainer.accumulate_grad_batches,
    )


def read_start(init: Initialisation) -> Weights | None:
    """The weights to start from; None for a model from scratch."""
    return None if init.checkpoint is None else read_weights(init.checkpoint)


def inherit(model: DictConfig, start: Weights | None) -> dict[str, Any]:
    """What a model takes over from the description in the file that it starts from.

    `model=auto` takes the architecture; a named model the pretrained windows, without which a
    continuous position bias would mean something else at another window.

    Raises:
        UserError: a named model whose equal shapes would hide that its blocks work differently.
    """
    described = (
        None if start is None or start.description is None else start.description["arguments"]
    )
    if "name" not in model:
        return {"arguments": described}
    if described is None:
        return {}
    with torch.device("meta"):
        named: SwinTransformer = instantiate(model)
    for switch in ("norm", "similarity", "position_bias"):
        mine, theirs = named.arguments[switch], described[switch]
        if mine != theirs:
            raise UserError(
                f"model.{switch} is {mine} and init.checkpoint was trained with {theirs}; "
                f"use model.{switch}={theirs}"
            )
    if model.pretrained_window_sizes is not None:
        return {}
    return {"pretrained_window_sizes": described["pretrained_window_sizes"]}


def start_from(encoder: SwinTransformer, start: Weights | None, init: Initialisation) -> None:
    """Loads the encoder and says what became of each tensor, or that it starts from scratch."""
    if start is None:
        say("from scratch: init.checkpoint is not set")
        return
    coverage = load_encoder_weights(
        encoder, start.encoder, source=str(init.checkpoint), strict=init.strict
    )
    say(f"from {init.checkpoint} ({start.origin}): {coverage}")


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
    encoder: SwinTransformer,
    images: ImageDataModule,
    *,
    stage: str,
    started: float,
) -> dict[str, Any]:
    """Trains, validates the final weights, and writes the encoder and the summary (rank 0)."""
    trainer = run.trainer
    trainer.fit(task, datamodule=images, ckpt_path=run.resumed, weights_only=True)
    if task.validated_step != trainer.global_step:
        trainer.validate(task, datamodule=images, verbose=False)
    if not trainer.is_global_zero:
        return {}
    save_encoder(encoder, Path(run.run_dir, "encoder.safetensors"), images.normalisation)
    return write_summary(
        Path(run.run_dir, "summary.json"),
        {
            "stage": stage,
            "metrics": {
                name: float(value)
                for name, value in trainer.callback_metrics.items()
                if name.startswith("val/")
            },
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


def count_parameters(module: torch.nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
