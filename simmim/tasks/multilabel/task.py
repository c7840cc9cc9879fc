"""The task `multilabel`: several labels an image, or none."""

from collections.abc import Mapping, Sequence

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from typing_extensions import Unpack

from simmim.checkpoints.model_init import ModelInit
from simmim.checkpoints.read import Weights
from simmim.data import ImageDataModule
from simmim.data.sources.label_table import TargetImages, as_names
from simmim.models.classifier import Classifier, HeadedEncoder, Mode
from simmim.tasks.multilabel.evaluation import evaluate_multilabel
from simmim.tasks.multilabel.labels import label_sets
from simmim.tasks.multilabel.module import MultilabelModule
from simmim.tasks.task import Evaluation, Outputs, Task, percent, require_all_outputs
from simmim.training.module import TrainingArguments
from simmim.utils.console import warn
from simmim.utils.errors import UserError

SHOWN = {"map": "mAP", "f1": "F1"}


class Multilabel(Task):
    """Several labels an image, or none, from columns of a table.

    Args:
        columns: a column of 1 and 0 for each label, or one column of names (None: all columns of 1
            and 0, or else the only column).
        separator: what stands between names (`space` for a space; None: |, ; or ,).
        known: labels of a trained model; others are refused.
    """

    name = "multilabel"
    problem_type = "multi_label_classification"

    def __init__(
        self,
        columns: str | Sequence[str] | None = None,
        separator: str | None = None,
        known: Sequence[str] = (),
    ) -> None:
        self.columns = as_names(columns)
        self.separator = separator
        self.known = tuple(known)

    def label(self, images: ImageDataModule) -> tuple[str, ...]:
        """A 1 for each label that an image has, else 0; returns the labels' names."""
        return label_sets(images, self.columns, self.separator, self.known)

    @torch.no_grad()
    def initialise_head(self, model: HeadedEncoder, images: ImageDataModule) -> None:
        """Starts each label at its frequency, so that the first steps do not learn that alone."""
        assert isinstance(model, Classifier) and isinstance(images.train, TargetImages)
        targets = images.train.targets
        # As if one more image had the label and one more had not.
        shares = (targets.sum(dim=0) + 1) / (len(targets) + 2)
        model.head.linear.bias.copy_(shares.logit())

    def create_module(
        self,
        model: HeadedEncoder,
        outputs: tuple[str, ...],
        images: ImageDataModule,
        *,
        mode: Mode,
        mixing: DictConfig | None,
        **training: Unpack[TrainingArguments],
    ) -> MultilabelModule:
        """Training by binary cross-entropy.

        Raises:
            UserError: no held-out image has any of the labels.
        """
        assert isinstance(images.val, TargetImages) and isinstance(images.train, TargetImages)
        shares = images.val.targets.mean(dim=0)
        occurring = shares[shares > 0]
        if not len(occurring):
            raise UserError(
                "no held-out image has any of the labels, so that nothing would be measured; hold out "
                "more by data.val_ratio, or put others into val"
            )
        in_training = images.train.targets.sum(dim=0).tolist()
        if unseen := [name for name, count in zip(outputs, in_training, strict=True) if not count]:
            warn(f"no training image is {', '.join(unseen[:8])}: it cannot be learned")
        for name, share in zip(outputs, shares.tolist(), strict=True):
            if share == 0:
                warn(f"no held-out image is {name}: its average precision is left out")
        return MultilabelModule(
            model,
            outputs=outputs,
            prevalence=float(occurring.mean()),
            mode=mode,
            held_out_crop=images.held_out_crop(),
            **training,
        )

    def describe(self, metrics: Mapping[str, float | None]) -> str:
        """Mean average precision and F1."""
        return percent(metrics, SHOWN)

    def evaluate(
        self, start: ModelInit, images: ImageDataModule, trainer: pl.Trainer, outputs: Outputs
    ) -> Evaluation:
        """Average precision, precision, recall and F1 of each label; each image's probabilities."""
        require_all_outputs(outputs, self.name)
        return evaluate_multilabel(start, images, trainer, self.label(images))

    def adopt(self, weights: Weights) -> "Multilabel":
        """The labels that the model was trained on."""
        return Multilabel(self.columns, self.separator, known=weights.classes)
