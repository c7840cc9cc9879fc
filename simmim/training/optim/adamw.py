"""AdamW with the papers' learning-rate scaling, weight decay and schedules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from simmim.training.optim.param_groups import parameter_groups
from simmim.training.optim.schedules import Schedule, cosine, multistep, with_warmup
from simmim.utils.errors import UserError

ScheduleName = Literal["cosine", "multistep"]


@dataclass(frozen=True)
class AdamWRecipe:
    """AdamW with a linear warm-up and a learning-rate schedule, updated every step.

    Attributes:
        lr: peak learning rate for a batch of `lr_batch_size` images, scaled linearly to the
            effective batch size (`lr_batch_size` None: not scaled).
        weight_decay: for matrices; vectors and position biases have none.
        betas, eps: as in `torch.optim.AdamW`.
        layer_decay: each layer's rate divided by that of the next layer (1: the same for all).
        clip_norm: maximum gradient norm (None: no clipping).
        warmup_epochs, warmup_steps: length of the linear warm-up; steps take precedence if given.
        warmup_factor: rate at the first step divided by the peak rate, the same for all layers.
        final_factor: rate at the end of the cosine divided by the peak rate, the same for all
            layers.
        milestones: epochs after which `multistep` multiplies the rate by `gamma`.

    Raises:
        UserError: a value out of its range.
    """

    lr: float
    weight_decay: float
    lr_batch_size: int | None = 512
    betas: Sequence[float] = (0.9, 0.999)
    eps: float = 1e-8
    layer_decay: float = 1.0
    clip_norm: float | None = 5.0
    schedule: ScheduleName = "cosine"
    warmup_epochs: float = 0.0
    warmup_steps: int | None = None
    warmup_factor: float = 0.005
    final_factor: float = 0.0
    milestones: Sequence[float] = ()
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise UserError(f"optim.lr {self.lr} is not positive; use 1e-4")
        if self.weight_decay < 0:
            raise UserError(f"optim.weight_decay {self.weight_decay} is negative; use 0.05, or 0")
        if not 0 < self.layer_decay <= 1:
            raise UserError(
                f"optim.layer_decay {self.layer_decay} is not in (0, 1]; use 0.75, or 1 for none"
            )
        if self.lr_batch_size is not None and self.lr_batch_size < 1:
            raise UserError(f"optim.lr_batch_size {self.lr_batch_size} is not positive; use 512")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(
                f"optim.betas {list(self.betas)} are not two numbers in [0, 1); use [0.9, 0.999]"
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UserError(f"optim.clip_norm {self.clip_norm} is not positive; use 5, or null")
        if self.schedule not in get_args(ScheduleName):
            names = " or ".join(get_args(ScheduleName))
            raise UserError(f"optim.schedule {self.schedule} is unknown; use {names}")
        if self.warmup_epochs < 0 or (self.warmup_steps or 0) < 0:
            raise UserError("optim.warmup_epochs and optim.warmup_steps cannot be negative; use 0")
        if list(self.milestones) != sorted(self.milestones):
            raise UserError(
                f"optim.milestones {list(self.milestones)} must ascend; "
                f"use {sorted(self.milestones)}"
            )

    def peak_lr(self, effective_batch: int) -> float:
        """The learning rate after warm-up for this many images per step."""
        return self.lr * effective_batch / (self.lr_batch_size or effective_batch)

    def optimizer(
        self,
        model: nn.Module,
        effective_batch: int,
        depths: Sequence[int],
        *,
        fused: bool | None = None,
    ) -> torch.optim.AdamW:
        """AdamW over the model's parameters, in groups with their peak learning rates.

        `effective_batch` is images per step, `depths` the encoder's blocks per stage, `fused` that
        of `torch.optim.AdamW` (None: PyTorch's choice).
        """
        peak_lr = self.peak_lr(effective_batch)
        return torch.optim.AdamW(
            parameter_groups(
                model,
                lr=peak_lr,
                weight_decay=self.weight_decay,
                depths=depths,
                layer_decay=self.layer_decay,
            ),
            lr=peak_lr,
            betas=(self.betas[0], self.betas[1]),
            eps=self.eps,
            fused=fused,
        )

    def scheduler(
        self, optimizer: torch.optim.Optimizer, *, total_steps: int, steps_per_epoch: float
    ) -> LambdaLR:
        """The schedule, to be stepped after every optimiser step."""
        peak_lr = optimizer.defaults["lr"]
        return LambdaLR(
            optimizer,
            [
                self.factors(total_steps, steps_per_epoch, group["lr"] / peak_lr)
                for group in optimizer.param_groups
            ],
        )

    def factors(self, total_steps: int, steps_per_epoch: float, scale: float = 1.0) -> Schedule:
        """The schedule of a layer whose peak rate is `scale` times that of the last layer.

        It gives fractions of the layer's own peak rate. Warm-up starts and the cosine ends at rates
        that are the same for all layers, as in the official code; so the cosine of a layer with a
        small `scale` can end above its peak rate.
        """
        warmup_steps = (
            round(self.warmup_epochs * steps_per_epoch)
            if self.warmup_steps is None
            else self.warmup_steps
        )
        if self.schedule == "cosine":
            after = cosine(total_steps, warmup_steps, self.final_factor / scale)
        else:
            after = multistep([round(m * steps_per_epoch) for m in self.milestones], self.gamma)
        return with_warmup(after, warmup_steps, self.warmup_factor / scale)


def describe_lr(recipe: AdamWRecipe, *, devices: int, batch_size: int, accumulation: int) -> str:
    """The recipe's peak rate: `effective batch 2048 = 8 devices × 64 × 4 accumulation → lr 4.0e-4`."""
    effective = devices * batch_size * accumulation
    mantissa, exponent = f"{recipe.peak_lr(effective):.1e}".split("e")
    how = (
        f" ({recipe.lr:g} per {recipe.lr_batch_size})" if recipe.lr_batch_size else " (not scaled)"
    )
    return (
        f"effective batch {effective} = {devices} device{'s' if devices > 1 else ''} × {batch_size} "
        f"× {accumulation} accumulation → lr {mantissa}e{int(exponent)}{how}"
    )
