"""Validation metrics of numbers: smooth L1, mean absolute error and R²."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from simmim.tasks.module import HeldOutMetrics


class RegressionMetrics(HeldOutMetrics):
    """Smooth L1 of standardised numbers, mean absolute error in their own units, and R².

    The last two are means over the outputs. R² is of standardised numbers, which does not change it
    and keeps its sums exact.

    Args:
        mean: of the training targets, for each output.
        std: their standard deviation.
    """

    mean: Tensor
    std: Tensor
    loss: MeanMetric
    mae: MeanMetric
    r2: "Determination"

    def __init__(self, mean: Float[Tensor, " k"], std: Float[Tensor, " k"]) -> None:
        # By default NaN would be ignored, and hide divergence.
        super().__init__(
            loss=MeanMetric(nan_strategy=math.nan),
            mae=MeanMetric(nan_strategy=math.nan),
            r2=Determination(len(mean)),
        )
        self.register_buffer("mean", mean.detach().clone(), persistent=False)
        self.register_buffer("std", std.detach().clone(), persistent=False)

    def update(self, outputs: Float[Tensor, "n k"], labels: Float[Tensor, "n k"]) -> None:
        """Adds one batch, which may be empty."""
        if len(labels) == 0:
            return
        mine, theirs = (outputs - self.mean) / self.std, (labels - self.mean) / self.std
        self.loss.update(F.smooth_l1_loss(mine, theirs, reduction="none"))
        self.mae.update((outputs - labels).abs())
        self.r2.update(mine, theirs)


class Determination(Metric):
    """The mean R² of the outputs; NaN for fewer than two images.

    torchmetrics' own has states without a shape until its first update, so that a rank without a
    counted image could not be gathered with the others.

    Attributes:
        by_output: after `compute`, R² of each output over all ranks.
    """

    full_state_update = False
    by_output: Float[Tensor, " k"]
    residual: Tensor
    total: Tensor
    squares: Tensor
    images: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__()
        for name in ("residual", "total", "squares"):
            sums = torch.zeros(outputs, dtype=torch.float64)
            self.add_state(name, default=sums, dist_reduce_fx="sum")
        self.add_state("images", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, outputs: Float[Tensor, "n k"], targets: Float[Tensor, "n k"]) -> None:
        """Adds one batch."""
        wanted = targets.double()
        self.residual += (outputs.double() - wanted).square().sum(dim=0)
        self.total += wanted.sum(dim=0)
        self.squares += wanted.square().sum(dim=0)
        self.images += len(wanted)

    def compute(self) -> Float[Tensor, ""]:
        """1 - residual / variance; of an output whose targets are all the same, 0."""
        self.by_output = self._compute_each()
        return self.by_output.mean().float()

    def _compute_each(self) -> Float[Tensor, " k"]:
        if int(self.images) < 2:
            return torch.full_like(self.residual, math.nan)
        variation = self.squares - self.total.square() / self.images
        is_constant = variation <= 1e-9 * self.squares
        return torch.where(is_constant, 0.0, 1 - self.residual / variation.clamp(min=1e-30))
