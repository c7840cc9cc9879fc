"""Validation metrics of a classifier."""

import math

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from simmim.tasks.module import HeldOutMetrics


class ValidationAccuracy(HeldOutMetrics):
    """Cross-entropy, top-1 and top-5 accuracy over all ranks."""

    loss: MeanMetric
    top1: MulticlassAccuracy
    top5: MulticlassAccuracy

    def __init__(self, outputs: int) -> None:
        super().__init__(
            # By default NaN would be ignored, and hide divergence; "disable" would ignore weights.
            loss=MeanMetric(nan_strategy=math.nan),
            top1=MulticlassAccuracy(outputs, average="micro"),
            top5=MulticlassAccuracy(outputs, top_k=min(5, outputs), average="micro"),
        )

    def update(self, logits: Float[Tensor, "n outputs"], labels: Int[Tensor, " n"]) -> None:
        """Adds one batch, which may be empty."""
        if len(labels) == 0:
            return
        self.loss.update(F.cross_entropy(logits, labels, reduction="none"))
        self.top1.update(logits, labels)
        self.top5.update(logits, labels)
