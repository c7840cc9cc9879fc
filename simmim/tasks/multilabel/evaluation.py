"""Evaluates a classifier of several labels: metrics of each label, probabilities of each image."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pytorch_lightning as pl
from jaxtyping import Float
from torch import Tensor

from simmim.checkpoints.model_init import ModelInit
from simmim.data import ImageDataModule
from simmim.models.classifier import Classifier
from simmim.tasks.evaluation import EvaluationModule, evaluate_held_out, rows_of_images
from simmim.tasks.multilabel.metrics import MultilabelMetrics
from simmim.tasks.task import Evaluation

_WORST_LABELS = 5


class LabelMetrics(NamedTuple):
    """A row of `per_label.csv`; empty where no image has the label, or none is predicted to."""

    label: str
    images: int
    average_precision: float
    precision: float | str
    recall: float | str
    f1: float | str


def evaluate_multilabel(
    start: ModelInit, images: ImageDataModule, trainer: pl.Trainer, names: tuple[str, ...]
) -> Evaluation:
    """Evaluates the labels with these names on held-out images.

    Raises:
        UserError: the model does not know these labels.
    """
    model = start.create_classifier(start.find_outputs(names), Classifier)
    metrics = MultilabelMetrics(len(names))
    normalisation = start.find_normalisation(images.normalisation)
    module = EvaluationModule(model, metrics, keep_probabilities, normalisation)
    found = evaluate_held_out(module, images, trainer, start.source)
    probabilities, labels = module.answers["probabilities"], module.answers["labels"]
    average_precisions = metrics.map.by_label.tolist()
    per_label = by_label(names, probabilities, labels, average_precisions)
    present = [row for row in per_label if row.images]
    worst = sorted(present, key=lambda row: row.average_precision)[:_WORST_LABELS]
    header = ["image", *(f"{prefix}{name}" for name in names for prefix in ("", "probability_"))]
    return Evaluation(
        images=len(labels),
        unreadable=len(images.val) - len(labels),
        metrics=found,
        details={"labels": len(names)},
        tables={
            "per_label.csv": [LabelMetrics._fields, *per_label],
            "predictions.csv": [
                header,
                *rows_of_images(images, module.answers["index"], [labels.long(), probabilities]),
            ],
        },
        shown=f"mAP {found['val/map']:.1%}, F1 {found['val/f1']:.1%}, worst labels:",
        lines=[
            f"{row.label}: average precision {row.average_precision:.1%}, of {row.images} images"
            for row in worst
        ],
    )


def by_label(
    names: Sequence[str],
    probabilities: Float[Tensor, "n k"],
    labels: Float[Tensor, "n k"],
    average_precisions: Sequence[float],
) -> list[LabelMetrics]:
    """The metrics of each label; precision, recall and F1 are at a probability of 0.5."""
    predicted, actual = probabilities > 0.5, labels > 0
    counts = ((predicted & actual), predicted, actual)
    hits, positives, images = (count.sum(dim=0).tolist() for count in counts)
    return [
        LabelMetrics(
            name,
            images[at],
            average_precisions[at],
            hits[at] / positives[at] if positives[at] else "",
            hits[at] / images[at] if images[at] else "",
            2 * hits[at] / (positives[at] + images[at]) if positives[at] + images[at] else "",
        )
        for at, name in enumerate(names)
    ]


def keep_probabilities(
    outputs: Float[Tensor, "n k"], labels: Float[Tensor, "n k"]
) -> Mapping[str, Tensor]:
    """Probabilities and true labels."""
    return {"probabilities": outputs.sigmoid(), "labels": labels}
