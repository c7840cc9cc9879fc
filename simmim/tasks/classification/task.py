"""The task `classification`: one class an image."""

from collections.abc import Mapping

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig
from typing_extensions import Unpack

from simmim.checkpoints.model_init import ModelInit
from simmim.data import ImageDataModule
from simmim.models.classifier import HeadedEncoder, Mode
from simmim.tasks.classification.evaluation import evaluate_classifier
from simmim.tasks.classification.labels import label_classes
from simmim.tasks.classification.module import ClassificationModule
from simmim.tasks.task import Evaluation, Outputs, Task, percent
from simmim.training.module import TrainingArguments

SHOWN = {"top1": "top-1", "top5": "top-5"}


class Classification(Task):
    """One class an image.

    Args:
        column: the column of `data.labels` that has the classes (None: its only one).
    """

    name = "classification"

    def __init__(self, column: str | None = None) -> None:
        self.column = column

    def label(self, images: ImageDataModule) -> tuple[str, ...]:
        """The images' classes, of which every one needs training images; returns their names."""
        label_classes(images, self.column)
        return images.require_classes()

    def create_module(
        self,
        model: HeadedEncoder,
        outputs: tuple[str, ...],
        images: ImageDataModule,
        *,
        mode: Mode,
        mixing: DictConfig | None,
        **training: Unpack[TrainingArguments],
    ) -> ClassificationModule:
        """Training by cross-entropy, with timm's Mixup and CutMix if `mixing` says so."""
        return ClassificationModule(
            model,
            classes=outputs,
            mode=mode,
            mixup=None
            if mixing is None
            else instantiate(mixing, num_classes=len(outputs), batch_size=images.batch_size),
            label_smoothing=0.0 if mixing is None else mixing.label_smoothing,
            held_out_crop=images.held_out_crop(),
            **training,
        )

    def describe(self, metrics: Mapping[str, float | None]) -> str:
        """Top-1 and top-5."""
        return percent(metrics, SHOWN)

    def evaluate(
        self, start: ModelInit, images: ImageDataModule, trainer: pl.Trainer, outputs: Outputs
    ) -> Evaluation:
        """Top-1, top-5 and the confusion of classes."""
        label_classes(images, self.column)
        return evaluate_classifier(start, images, trainer, outputs)
