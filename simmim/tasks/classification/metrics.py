"""Validation metrics of a classifier."""

import math

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy


class ValidationAccuracy(nn.Module):
    """Cross-entropy, top-1 and top-5 accuracy over all ranks."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        # By default NaN would be ignored, and hide divergence; "disable" would ignore weights.
        self.loss = MeanMetric(nan_strategy=math.nan)
        self.top1 = MulticlassAccuracy(outputs, average="micro")
        self.top5 = MulticlassAccuracy(outputs, top_k=min(5, outputs), average="micro")

    def update(self, logits: Float[Tensor, "n outputs"], labels: Int[Tensor, " n"]) -> None:
        """Adds one batch, which may be empty."""
        if len(labels) == 0:
            return
        self.loss.update(F.cross_entropy(logits, labels, reduction="none"))
        self.top1.update(logits, labels)
        self.top5.update(logits, labels)

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics, by the names that they are logged under."""
        return {"val/loss": self.loss, "val/top1": self.top1, "val/top5": self.top5}
