"""Supervised training of a model that predicts numbers."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simmim.data.dataset import Sample
from simmim.tasks.module import LabelledModule, Quality
from simmim.tasks.regression.metrics import RegressionMetrics
from simmim.tasks.regression.model import Regressor


class RegressionModule(LabelledModule):
    """Trains a regressor by smooth L1 between standardised numbers (Fast R-CNN, arXiv 1504.08083)."""

    task = "regression"
    model: Regressor

    def create_metrics(self) -> RegressionMetrics:
        """Smooth L1, mean absolute error and R²."""
        return RegressionMetrics(self.model.head.mean, self.model.head.std)

    def quality(self) -> Quality:
        """R², against the mean of the targets."""
        return Quality(
            "r2",
            "R²",
            0.0,
            "always predicting the mean gives",
            "Share of the variance that is explained (R²).",
        )

    def compute_loss(self, batch: Sample, batch_idx: int) -> Float[Tensor, ""]:
        """Smooth L1 of a batch, in standard deviations of the training targets."""
        images, head = self.normalisation.normalise(batch.image), self.model.head
        assert isinstance(batch.label, Tensor)
        outputs = self.model(images).float()
        return F.smooth_l1_loss(
            (outputs - head.mean) / head.std, (batch.label - head.mean) / head.std
        )
