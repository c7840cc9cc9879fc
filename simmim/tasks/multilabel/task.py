"""The task `multilabel`: several labels an image, or none."""

from collections.abc import Mapping, Sequence

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor
from typing_extensions import Unpack

from simmim.checkpoints.model_init import ModelInit
from simmim.checkpoints.read import Weights
from simmim.data import ImageDataModule
from simmim.data.sources.table import TargetImages, as_names
from simmim.models.classifier import Classifier, HeadedEncoder, Mode
from simmim.tasks.evaluation import EvaluationModule, evaluate_held_out, rows_of_images
from simmim.tasks.multilabel.labels import label_sets
from simmim.tasks.multilabel.metrics import MultilabelMetrics
from simmim.tasks.multilabel.module import MultilabelModule
from simmim.tasks.task import Evaluation, Outputs, Task, percent, require_all_outputs
from simmim.training.module import TrainingArguments
from simmim.utils.console import warn

SHOWN = {"map": "mAP", "f1": "F1"}
_WORST_LABELS = 5


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
        """Training by binary cross-entropy."""
        assert isinstance(images.val, TargetImages)
        shares = images.val.targets.mean(dim=0)
        occurring = shares[shares > 0]
        for name, share in zip(outputs, shares.tolist(), strict=True):
            if share == 0:
                warn(f"no held-out image is {name}: its average precision is left out")
        return MultilabelModule(
            model,
            outputs=outputs,
            prevalence=float(occurring.mean()) if len(occurring) else 0.0,
            mode=mode,
            held_out_crop=images.held_out_crop(),
            **training,
        )

    def describe(self, metrics: Mapping[str, float]) -> str:
        """Mean average precision and F1."""
        return percent(metrics, SHOWN)

    def evaluate(
        self, start: ModelInit, images: ImageDataModule, trainer: pl.Trainer, outputs: Outputs
    ) -> Evaluation:
        """Average precision, precision, recall and F1 of each label; each image's probabilities."""
        require_all_outputs(outputs, self.name)
        names = self.label(images)
        model = start.create_classifier(start.find_outputs(names), self.create_model)
        metrics = MultilabelMetrics(len(names))
        normalisation = start.find_normalisation(images.normalisation)
        module = EvaluationModule(model, metrics, keep, normalisation)
        found = evaluate_held_out(module, images, trainer, start.source)
        answers = {name: tensor.cpu() for name, tensor in module.answers.items()}
        order = answers["index"].argsort()
        shares, wanted = answers["shares"][order], answers["wanted"][order] > 0
        predicted = shares > 0.5
        right = (predicted & wanted).sum(dim=0).tolist()
        counts = zip(
            names,
            wanted.sum(dim=0).tolist(),
            predicted.sum(dim=0).tolist(),
            right,
            metrics.map.by_label.tolist(),
            strict=True,
        )
        per_label = [
            (
                name,
                actual,
                precision,
                hits / positives if positives else "",
                hits / actual if actual else "",
                2 * hits / (positives + actual) if positives + actual else "",
            )
            for name, actual, positives, hits, precision in counts
        ]
        images_of = rows_of_images(images, answers["index"][order], [wanted.long(), shares])
        header = ["image", *(f"{what}{name}" for name in names for what in ("", "probability_"))]
        worst = sorted((row for row in per_label if row[1]), key=lambda row: row[2])
        return Evaluation(
            images=len(wanted),
            unreadable=len(images.val) - len(wanted),
            metrics=found,
            details={"labels": len(names)},
            tables={
                "per_label.csv": [
                    ("label", "images", "average_precision", "precision", "recall", "f1"),
                    *per_label,
                ],
                "predictions.csv": [header, *images_of],
            },
            shown=f"mAP {found['val/map']:.1%}, F1 {found['val/f1']:.1%}, worst labels:",
            lines=[
                f"{name}: average precision {precision:.1%}, of {have} images"
                for name, have, precision, *_ in worst[:_WORST_LABELS]
            ],
        )

    def adopt(self, weights: Weights) -> "Multilabel":
        """The labels that the model was trained on."""
        return Multilabel(self.columns, self.separator, known=weights.classes)


def keep(outputs: Float[Tensor, "n k"], labels: Float[Tensor, "n k"]) -> dict[str, Tensor]:
    """Probabilities and true labels."""
    return {"shares": outputs.sigmoid(), "wanted": labels}
