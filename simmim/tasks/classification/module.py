"""Supervised training of a classifier, or of a linear layer on a frozen encoder."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from simmim.data.dataset import Sample
from simmim.data.decoding.on_device import UndecodedBatch
from simmim.data.missing_labels import require_label_each
from simmim.models.classifier import HeadedEncoder, Mode
from simmim.tasks.classification.metrics import ValidationAccuracy
from simmim.tasks.classification.mixup import Mix
from simmim.tasks.module import LabelledModule, Quality
from simmim.training.module import TrainingArguments
from simmim.utils.held_out_crop import HeldOutCrop


class ClassificationModule(LabelledModule):
    """Trains a classifier: normalise, mix, cross-entropy against (smoothed, mixed) labels.

    Args:
        model: encoder and head.
        classes: names of the classes, in the order of the model's outputs.
        mode: `full` trains everything; `linear` freezes the encoder and trains the head alone.
        mixup: timm's Mixup and CutMix, or None for plain labels with `label_smoothing`.
        held_out_crop: how validation images are cropped; stored in the checkpoints.
        training: see `TrainingArguments`.
    """

    task = "classification"

    def __init__(
        self,
        model: HeadedEncoder,
        *,
        classes: Sequence[str],
        mode: Mode = "full",
        mixup: Mix | None = None,
        label_smoothing: float = 0.0,
        held_out_crop: HeldOutCrop | None = None,
        **training: Unpack[TrainingArguments],
    ) -> None:
        super().__init__(
            model, outputs=tuple(classes), mode=mode, held_out_crop=held_out_crop, **training
        )
        self.mixup = mixup
        self.label_smoothing = label_smoothing

    def create_metrics(self) -> ValidationAccuracy:
        """Cross-entropy, top-1 and top-5."""
        return ValidationAccuracy(len(self.outputs))

    def quality(self) -> Quality:
        """Top-1, against chance."""
        return Quality(
            "top1",
            "top-1",
            1 / len(self.outputs),
            "chance is",
            "Share of images whose class was predicted correctly.",
            {"top5": "top-5"},
        )

    def report_facts(self) -> dict[str, Any]:
        """The task, its quality metric and the number of classes."""
        return {**super().report_facts(), "classes": len(self.outputs)}

    def on_before_batch_transfer(
        self, batch: Sample | UndecodedBatch, dataloader_idx: int
    ) -> Sample | UndecodedBatch:
        """Raises UserError if an image has no label; on the CPU, this does not wait for the device."""
        assert isinstance(batch.label, Tensor)
        require_label_each(batch.label)
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def compute_loss(self, batch: Sample, batch_idx: int) -> Float[Tensor, ""]:
        """Cross-entropy of a batch, which is mixed if there is Mixup."""
        images, labels = self.normalisation.normalise(batch.image), batch.label
        assert isinstance(labels, Tensor)
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)
        smoothing = 0.0 if self.mixup is not None else self.label_smoothing
        return F.cross_entropy(self.model(images).float(), labels, label_smoothing=smoothing)
