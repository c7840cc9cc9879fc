"""Inspects a step: its images, its activations' amplitudes, and what was not finite first."""

from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from simmim.data.datamodule import ImageDataModule
from simmim.models.swin.hooks import Amplitude, Inspection, inspect_forward
from simmim.training.module import MicroBatch, TrainingModule


class Origin(NamedTuple):
    """What was not finite first in a step; the smallest of several origins is the earliest.

    `kind` is 0 for weights, 1 for outputs, 2 for the loss, 3 for gradients, and 4 if all of these
    are finite and only their sum is not; `order` is the place within its kind.
    """

    kind: int
    order: int
    name: str


class Finding(NamedTuple):
    """What one rank finds in its part of a step; `suspects` are images with non-finite activations."""

    origin: Origin | None
    images: list[str]
    suspects: list[str]
    amplitudes: dict[str, Amplitude]


def find(trainer: pl.Trainer, task: TrainingModule, *, is_usual: bool) -> list[Finding]:
    """The findings of all ranks, before the weights change; each repeats one forward pass.

    `is_usual` is whether loss and gradient are finite.
    """
    mine = _find(trainer, task, is_usual)
    if trainer.world_size == 1:
        return [mine]
    findings: list[Any] = [None] * trainer.world_size
    distributed.all_gather_object(findings, mine)
    return findings


def first(findings: list[Finding]) -> Finding:
    """The finding with the earliest origin; rank 0's if none has an origin."""
    seeing = [finding for finding in findings if finding.origin is not None]
    return min(seeing, key=lambda finding: finding.origin or (), default=findings[0])


def all_images(findings: list[Finding]) -> list[str]:
    """The images of the whole step, over all ranks."""
    return [name for finding in findings for name in finding.images]


def all_suspects(findings: list[Finding]) -> list[str]:
    """The suspects of the whole step, over all ranks."""
    return [name for finding in findings for name in finding.suspects]


def _find(trainer: pl.Trainer, task: TrainingModule, is_usual: bool) -> Finding:
    losses = torch.stack([micro_batch.loss for micro_batch in task.micro_batches])
    worst = task.micro_batches[int(losses.argmax())]  # NaN counts as the largest
    seen = inspect_forward(task.model, task.model.encoder, lambda: task.compute_loss_again(worst))
    if isinstance(task.model, FSDPModule):
        # After a forward pass without a backward pass, the root keeps its gathered weights, and the
        # next forward pass would use them although the step has changed each rank's shard.
        task.model.reshard()
    return Finding(
        None if is_usual else _origin(task.model, worst, seen),
        [name for micro_batch in task.micro_batches for name in _identify(trainer, micro_batch)],
        [
            name
            for name, is_suspect in zip(_identify(trainer, worst), seen.suspects, strict=True)
            if is_suspect
        ],
        seen.amplitudes,
    )


def _origin(model: nn.Module, worst: MicroBatch, seen: Inspection) -> Origin:
    if (weight := _first_weight(model)) is not None:
        return weight
    if seen.origin is not None:
        order, name = seen.origin
        return Origin(1, order, f"the output of {name or 'the model'}")
    if not worst.loss.isfinite():
        return Origin(2, 0, "the loss")
    return _last_gradient(model) or Origin(4, 0, "the sum")


def _first_weight(model: nn.Module) -> Origin | None:
    """The first parameter that is not finite."""
    named = list(model.named_parameters())
    finite = torch.stack([_is_finite(parameter) for _, parameter in named]).tolist()
    for order, ((name, _), flag) in enumerate(zip(named, finite, strict=True)):
        if not flag:
            return Origin(0, order, f"parameter {name}")
    return None


def _last_gradient(model: nn.Module) -> Origin | None:
    """The last parameter whose gradient is not finite: the backward pass reaches it first."""
    named = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    if not named:
        return None
    finite = torch.stack([_is_finite(gradient) for _, gradient in named]).tolist()
    for order, ((name, _), flag) in enumerate(zip(reversed(named), reversed(finite), strict=True)):
        if not flag:
            return Origin(3, order, f"the gradient of {name}")
    return None


def _is_finite(tensor: torch.Tensor) -> torch.Tensor:
    """Whether all values are finite; of a sharded tensor, this rank's shard."""
    mine = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return mine.detach().isfinite().all()


def _identify(trainer: pl.Trainer, micro_batch: MicroBatch) -> list[str]:
    images = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(images, ImageDataModule)
    assert isinstance(micro_batch.batch.sample_index, torch.Tensor)
    return images.identify(micro_batch.batch.sample_index, trainer.current_epoch)
