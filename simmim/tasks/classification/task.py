"""Supervised training as a LightningModule: fine-tuning, or a linear layer on a frozen encoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from simmim.checkpoints.model_file import save_classifier
from simmim.data.dataset import Sample, is_counted
from simmim.data.decoding.on_device import UndecodedBatch
from simmim.data.labels import require_label_each
from simmim.models.classifier import Classifier, Mode
from simmim.tasks.classification.metrics import ValidationAccuracy
from simmim.tasks.classification.mixup import Mix
from simmim.training.task import TrainingArguments, TrainingTask
from simmim.utils.held_out_crop import HeldOutCrop


class ClassificationTask(TrainingTask):
    """Trains a classifier: normalise, mix, cross-entropy against (smoothed, mixed) labels.

    Args:
        model: encoder and head.
        classes: names of the classes, in the order of the model's outputs.
        mode: `full` trains everything; `linear` freezes the encoder and trains the head alone.
        mixup: timm's Mixup and CutMix, or None for plain labels with `label_smoothing`.
        held_out_crop: how validation images are cropped; stored in the checkpoints.
        training: see `TrainingArguments`.
    """

    metric_names = ("val/loss", "val/top1", "val/top5")

    def __init__(
        self,
        model: Classifier,
        *,
        classes: tuple[str, ...],
        mode: Mode = "full",
        mixup: Mix | None = None,
        label_smoothing: float = 0.0,
        held_out_crop: HeldOutCrop | None = None,
        **training: Unpack[TrainingArguments],
    ) -> None:
        super().__init__(model, **training)
        self.classes = classes
        self.mode = mode
        self.mixup = mixup
        self.label_smoothing = label_smoothing
        self.held_out_crop = held_out_crop
        if mode == "linear":
            model.encoder.requires_grad_(False)
        self.held_out = ValidationAccuracy(len(classes))

    def report_facts(self) -> dict[str, Any]:
        """The number of classes."""
        return {"classes": len(self.classes)}

    def save_weights(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Writes `classifier.safetensors` beside `encoder.safetensors`."""
        super().save_weights(folder, weights)
        assert isinstance(self.model, Classifier)
        path = folder / "classifier.safetensors"
        save_classifier(
            self.model, path, self.classes, self.normalisation, weights, self.held_out_crop
        )

    def train(self, mode: bool = True) -> "ClassificationTask":
        """Switches to training mode; a frozen encoder stays in evaluation mode, without drop path."""
        super().train(mode)
        if self.mode == "linear":
            self.model.encoder.eval()
        return self

    def on_before_batch_transfer(
        self, batch: Sample | UndecodedBatch, dataloader_idx: int
    ) -> Sample | UndecodedBatch:
        """Raises UserError if an image has no label; on the CPU, this does not wait for the device."""
        require_label_each(batch)
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def compute_loss(self, batch: Sample, batch_idx: int) -> Float[Tensor, ""]:
        """Cross-entropy of a batch, which is mixed if there is Mixup."""
        images, labels = self.normalisation.normalise(batch.image), batch.label
        assert isinstance(labels, Tensor)
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)
        smoothing = 0.0 if self.mixup is not None else self.label_smoothing
        return F.cross_entropy(self.model(images).float(), labels, label_smoothing=smoothing)

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Updates the metrics; repeats that pad the ranks to equal length do not count."""
        assert isinstance(batch.label, Tensor)
        counted = is_counted(batch)
        logits = self.model(self.normalisation.normalise(batch.image)).float()
        self.held_out.update(logits[counted], batch.label[counted])

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics."""
        self.log_validation(self.held_out.metrics)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the validation crop, and the classes' names in the order of the head's outputs."""
        super().on_save_checkpoint(checkpoint)
        if self.held_out_crop is not None:
            checkpoint["encoder"]["held_out_crop"] = self.held_out_crop
        checkpoint["classes"] = list(self.classes)
