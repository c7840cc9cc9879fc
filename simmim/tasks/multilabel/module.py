"""Supervised training of a classifier whose images may have several labels."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from simmim.data.dataset import Sample
from simmim.models.classifier import HeadedEncoder, Mode
from simmim.tasks.module import LabelledModule, Quality
from simmim.tasks.multilabel.metrics import MultilabelMetrics
from simmim.training.module import TrainingArguments
from simmim.utils.held_out_crop import HeldOutCrop


class MultilabelModule(LabelledModule):
    """Trains a classifier by binary cross-entropy of each label.

    Args:
        model: encoder and head.
        outputs: names of the labels, in order.
        prevalence: the mean share of held-out images that have a label, which a random order
            reaches as mean average precision.
        mode: `full` trains everything; `linear` freezes the encoder and trains the head alone.
        held_out_crop: how validation images are cropped; stored in the checkpoints.
        **training: see `TrainingArguments`.
    """

    task = "multilabel"

    def __init__(
        self,
        model: HeadedEncoder,
        *,
        outputs: tuple[str, ...],
        prevalence: float,
        mode: Mode = "full",
        held_out_crop: HeldOutCrop | None = None,
        **training: Unpack[TrainingArguments],
    ) -> None:
        super().__init__(model, outputs=outputs, mode=mode, held_out_crop=held_out_crop, **training)
        self.prevalence = prevalence

    def create_metrics(self) -> MultilabelMetrics:
        """Binary cross-entropy, mean average precision and F1."""
        return MultilabelMetrics(len(self.outputs))

    def quality(self) -> Quality:
        """Mean average precision, against a random order."""
        return Quality(
            "map",
            "mAP",
            self.prevalence,
            "a random order gives",
            "Mean over labels of the average precision (mAP), which does not depend on a threshold.",
            {"f1": "F1 at 0.5"},
        )

    def compute_loss(self, batch: Sample, batch_idx: int) -> Float[Tensor, ""]:
        """Mean binary cross-entropy over images and labels."""
        assert isinstance(batch.label, Tensor)
        logits = self.model(self.normalisation.normalise(batch.image)).float()
        return F.binary_cross_entropy_with_logits(logits, batch.label)
