"""Validation metrics of sets of labels: binary cross-entropy, mean average precision and F1."""

import math
import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MultilabelF1Score
from torchmetrics.functional.classification import multilabel_average_precision
from torchmetrics.utilities import dim_zero_cat

from simmim.tasks.module import HeldOutMetrics


class MultilabelMetrics(HeldOutMetrics):
    """Binary cross-entropy, mean average precision over labels, and macro F1 at probability 0.5."""

    loss: MeanMetric
    map: "MeanAveragePrecision"
    f1: MultilabelF1Score

    def __init__(self, labels: int) -> None:
        super().__init__(
            # By default NaN would be ignored, and hide divergence.
            loss=MeanMetric(nan_strategy=math.nan),
            map=MeanAveragePrecision(labels),
            f1=MultilabelF1Score(labels, average="macro"),
        )

    def update(self, outputs: Float[Tensor, "n k"], labels: Float[Tensor, "n k"]) -> None:
        """Adds one batch of logits, which may be empty."""
        # Also where no image counts: ranks are gathered, and each has to have something.
        self.map.update(outputs, labels)
        if len(labels) == 0:
            return
        self.loss.update(
            F.binary_cross_entropy_with_logits(outputs, labels, reduction="none").mean(dim=1)
        )
        self.f1.update(outputs.sigmoid(), labels.int())


class MeanAveragePrecision(Metric):
    """The mean over labels of the area under the curve of precision over recall.

    Labels that no image has are left out. It ranks by logits: probabilities of float32 would make
    large logits equal.

    Attributes:
        by_label: after `compute`, the average precision of each label over all ranks; NaN for one
            that no image has.
    """

    full_state_update = False
    logits: list[Tensor]
    wanted: list[Tensor]
    by_label: Float[Tensor, " k"]

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.labels = labels
        self.add_state("logits", default=[], dist_reduce_fx="cat")
        self.add_state("wanted", default=[], dist_reduce_fx="cat")

    def update(self, logits: Float[Tensor, "n k"], labels: Float[Tensor, "n k"]) -> None:
        """Adds one batch."""
        self.logits.append(logits)
        self.wanted.append(labels)

    def compute(self) -> Float[Tensor, ""]:
        """The mean over labels; NaN if no image has any label, or an output is not finite."""
        self.by_label = self._compute_each()
        return self.by_label[~self.by_label.isnan()].mean()

    def _compute_each(self) -> Float[Tensor, " k"]:
        # A list of batches or, gathered from several ranks, a tensor.
        if len(self.logits) == 0:
            return torch.full((self.labels,), math.nan, device=self.device)
        logits, wanted = dim_zero_cat(self.logits), dim_zero_cat(self.wanted).long()
        if len(logits) == 0 or not logits.isfinite().all():
            return torch.full((self.labels,), math.nan, device=self.device)
        # The sigmoid in float64 keeps the order of all logits between -700 and 36.
        shares = (-logits.double()).exp().add(1).reciprocal()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = multilabel_average_precision(
                shares, wanted, num_labels=self.labels, average="none"
            )
        found = found.reshape(self.labels).float()
        return torch.where(wanted.sum(dim=0) > 0, found, math.nan)
