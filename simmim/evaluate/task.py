"""Evaluation of a classifier as a LightningModule: metrics, and a prediction per image."""

from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from simmim.data.dataset import Sample, is_counted
from simmim.data.labels import require_label_each
from simmim.evaluate.confusion import Predictions
from simmim.models.classifier import Classifier
from simmim.tasks.classification.metrics import ValidationAccuracy
from simmim.utils.normalization import Normalisation


class EvaluationTask(pl.LightningModule):
    """Evaluates a classifier; repeats that pad the ranks to equal length do not count.

    Args:
        model: the classifier.
        rows: for each label of the data, the index of the classifier's output for that class.
        outputs: number of outputs of the classifier.

    Attributes:
        answers: predictions of all ranks, after validation; labels are indices of outputs.
    """

    rows: Tensor

    def __init__(
        self,
        model: Classifier,
        *,
        rows: Sequence[int],
        outputs: int,
        normalisation: Normalisation,
    ) -> None:
        super().__init__()
        self.model = model
        self.normalisation = normalisation
        self.register_buffer("rows", torch.tensor(rows), persistent=False)
        self.held_out = ValidationAccuracy(outputs)
        self._collected = _CollectedAnswers()
        self.answers: Predictions | None = None

    def on_before_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Raises UserError if an image has no label; on the CPU, this does not wait for the device."""
        require_label_each(batch)
        return batch

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Adds the metrics and predictions of one batch."""
        assert isinstance(batch.label, Tensor)
        counted = is_counted(batch)
        logits = self.model(self.normalisation.normalise(batch.image)).float()[counted]
        outputs = self.rows[batch.label[counted]]
        self.held_out.update(logits, outputs)
        first5 = logits.topk(min(5, logits.shape[1])).indices
        in_top5 = (first5 == outputs[:, None]).any(dim=1)
        self._collected.update(outputs, logits.argmax(dim=1), in_top5)

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics, and gathers the predictions of all ranks."""
        self.log_dict({name: metric.compute() for name, metric in self.held_out.metrics.items()})
        self.answers = self._collected.compute()


class _CollectedAnswers(Metric):
    """Collects predictions; torchmetrics gathers them over ranks with different numbers of images."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in Predictions._fields:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self, labels: Int[Tensor, " n"], predicted: Int[Tensor, " n"], in_top5: Bool[Tensor, " n"]
    ) -> None:
        for name, column in zip(Predictions._fields, (labels, predicted, in_top5), strict=True):
            getattr(self, name).append(column)

    def compute(self) -> Predictions:
        return Predictions(*(dim_zero_cat(getattr(self, name)) for name in Predictions._fields))
