"""The stages, each a story from configuration to run directory, readable top to bottom."""

import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from simmim.callbacks import RunProgress, Throughput, peak_memory_bytes
from simmim.checkpoints.encoder_file import read_encoder, save_encoder
from simmim.data import ImageDataModule
from simmim.data.transforms import CenterCrop
from simmim.encoder import SwinTransformer
from simmim.errors import UserError
from simmim.losses import check_target_window
from simmim.models import SimMIM
from simmim.optim import describe_lr
from simmim.summary import write_summary
from simmim.tasks import SimMIMTask
from simmim.trainer import run_length

log = logging.getLogger(__name__)


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
    """SimMIM pretraining: mask, reconstruct, and leave an encoder. Returns the summary.

    What can be wrong with the configuration is found before data is read, and what can be wrong
    with the data before weights are allocated.
    """
    started = time.monotonic()
    with torch.device("meta"):
        planned: SwinTransformer = instantiate(model)
    if target_window is not None:
        check_target_window(target_window)
    mask_generator = instantiate(
        mask, image_size=planned.image_size, token_size=planned.patch_size, seed=seed
    )
    optimization = instantiate(optim)
    throughput = Throughput(data.batch_size, trainer.log_every_n_steps)
    checkpoints = instantiate(save, run_dir=run_dir)
    runner: pl.Trainer = instantiate(
        trainer,
        clip_norm=optimization.clip_norm,
        run_dir=run_dir,
        loggers=[instantiate(entry, save_dir=run_dir) for entry in logger.values()],
        callbacks=[
            throughput,
            RunProgress(throughput),
            checkpoints,
            instantiate(reconstructions, run_dir=run_dir),
            pl.callbacks.LearningRateMonitor("step"),
        ],
    )
    resumed = resume_checkpoint(resume, checkpoints.last)

    images = create_data(data, augmentation, planned, seed)
    images.require_batches(runner.world_size)
    length = run_length(
        max_epochs=runner.max_epochs,
        max_steps=runner.max_steps,
        batches_per_epoch=images.batches_per_epoch(runner.world_size),
        accumulation=runner.accumulate_grad_batches,
    )

    pl.seed_everything(seed, verbose=False)
    encoder: SwinTransformer = instantiate(model)
    if init.checkpoint is not None and resumed is None:
        start_from(encoder, init.checkpoint)
    task = SimMIMTask(
        SimMIM(encoder),
        mask_generator=mask_generator,
        normalisation=images.normalisation,
        optimization=optimization,
        batch_size=images.batch_size,
        total_steps=length.total_steps,
        steps_per_epoch=length.steps_per_epoch,
        seed=seed,
        target_window=target_window,
    )

    announce(run_dir, task.model, images, runner)
    log.info(
        describe_lr(
            optimization,
            devices=runner.world_size,
            batch_size=images.batch_size,
            accumulation=runner.accumulate_grad_batches,
        )
    )
    runner.fit(task, datamodule=images, ckpt_path=resumed, weights_only=True)
    if task.validated_step != runner.global_step:
        runner.validate(task, datamodule=images, verbose=False)
    if not runner.is_global_zero:
        return {}
    save_encoder(encoder, Path(run_dir, "encoder.safetensors"), images.normalisation)
    metrics = {name: float(value) for name, value in runner.callback_metrics.items()}
    summary = write_summary(
        Path(run_dir, "summary.json"),
        {
            "stage": "pretrain",
            "metrics": metrics,
            "steps": runner.global_step,
            "epochs": runner.current_epoch,
            "parameters": count_parameters(task.model),
            "encoder_parameters": count_parameters(encoder),
            "images_per_second": throughput.images_per_second,
            "first_step_seconds": throughput.first_step_seconds,
            "seconds": time.monotonic() - started,
            "peak_memory_bytes": peak_memory_bytes(),
        },
    )
    log.info(
        f"held-out masked L1 {metrics['val/loss']:.4f}, {metrics['val/loss_over_baseline']:.2f} "
        f"of predicting each image's visible mean ({metrics['val/baseline_visible_mean']:.4f})"
    )
    log.info(f"finished in {summary['seconds']:.0f} s: {run_dir}")
    return summary


def create_data(
    data: DictConfig, augmentation: DictConfig, encoder: SwinTransformer, seed: int
) -> ImageDataModule:
    """The data that `data` names, augmented as `augmentation` says."""
    images: ImageDataModule = instantiate(
        data,
        train_transform=instantiate(augmentation),
        val_transform=CenterCrop(encoder.image_size),
        seed=seed,
    )
    channels = len(images.normalisation.mean)
    if channels != encoder.in_channels:
        raise UserError(
            f"the data has {channels} channels and model.in_channels is {encoder.in_channels}; "
            f"use model.in_channels={channels}"
        )
    return images


def resume_checkpoint(resume: str, last: Path) -> Path | None:
    """The checkpoint that a run goes on from: `auto` its own last one, `never`, or a path."""
    if resume == "never":
        return None
    if resume == "auto":
        return last if last.exists() else None
    if not Path(resume).is_file():
        raise UserError(f"resume={resume} does not exist; use auto, never or a checkpoint's path")
    return Path(resume)


def start_from(encoder: SwinTransformer, path: str) -> None:
    """Loads an encoder's weights into another of the same architecture; strict."""
    _, tensors = read_encoder(path)
    own = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if own != found:
        name = sorted(set(own.items()) ^ set(found.items()))[0][0]
        raise UserError(
            f"init.checkpoint {path} does not fit the model: {name} is {found.get(name, 'missing')} "
            f"in the file and {own.get(name, 'unknown')} in the model; use the model it was made with"
        )
    encoder.load_state_dict(tensors)
    log.info(f"starting from the {len(tensors)} encoder tensors of {path}")


def announce(
    run_dir: str, model: torch.nn.Module, data: ImageDataModule, trainer: pl.Trainer
) -> None:
    """Logs what is about to run."""
    kind = type(trainer.accelerator).__name__.removesuffix("Accelerator")
    log.info(f"run directory {run_dir}")
    log.info(
        f"{count_parameters(model) / 1e6:.1f}M parameters, {len(data.train)} training and "
        f"{len(data.val)} held-out images, {trainer.world_size} × {kind}, {trainer.precision}"
    )


def count_parameters(module: torch.nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
