"""Evaluation of a classifier: accuracy, and tables of classes and of their confusion."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from simmim.checkpoints.class_names import imagenet_synsets
from simmim.checkpoints.model_init import ModelInit
from simmim.data import ImageDataModule
from simmim.data.missing_labels import require_label_each, require_labels
from simmim.tasks.classification.confusion import Predictions, by_class, count_confusion
from simmim.tasks.classification.metrics import ValidationAccuracy
from simmim.tasks.evaluation import EvaluationModule, evaluate_held_out
from simmim.tasks.task import Evaluation, Outputs
from simmim.utils.console import say
from simmim.utils.errors import UserError

_WORST_CLASSES = 5


def evaluate_classifier(
    start: ModelInit, images: ImageDataModule, trainer: pl.Trainer, outputs: Outputs
) -> Evaluation:
    """Evaluates a classifier on held-out images, on any number of devices.

    `outputs` says which of its outputs compete: all, or those of the data's classes.

    Raises:
        UserError: the images have no classes, or some that the classifier does not know.
    """
    assert start.weights is not None and start.weights.num_classes is not None
    head_size = start.weights.num_classes
    classes = images.val.classes
    if not classes:
        raise UserError(
            "the data has no classes to compare answers with; put the images into one folder a "
            "class, below data.root or data.root/val"
        )
    require_labels(images.val, "held-out")
    rows = start.find_outputs(classes)
    names: Sequence[str] = output_names(classes, rows, head_size, start.weights.classes)
    kept = list(range(head_size))
    if outputs == "present":
        if len(classes) < 2:
            raise UserError("outputs=present leaves one class to choose from; use outputs=all")
        names, kept, rows = [names[row] for row in rows], rows, list(range(len(rows)))
    elif len(classes) < head_size:
        say(
            f"the data has {len(classes)} of the classifier's {head_size} classes, which all compete; "
            "outputs=present leaves the others out"
        )
    module = EvaluationModule(
        start.create_classifier(kept),
        ValidationAccuracy(len(kept)),
        rank_outputs,
        start.find_normalisation(images.normalisation),
        label=partial(place_labels, rows=torch.tensor(rows)),
    )
    metrics = evaluate_held_out(module, images, trainer, start.source)
    answers = Predictions(*(module.answers[name] for name in Predictions._fields))
    tables, lines = tabulate(answers, names, rows)
    return Evaluation(
        images=len(answers.labels),
        unreadable=len(images.val) - len(answers.labels),
        metrics=metrics,
        details={"classes": len(rows), "outputs": len(kept)},
        tables=tables,
        shown=f"top-1 {metrics['val/top1']:.1%}, top-5 {metrics['val/top5']:.1%}, worst classes:",
        lines=lines,
    )


def place_labels(labels: Int[Tensor, " b"], rows: Int[Tensor, " classes"]) -> Int[Tensor, " b"]:
    """The outputs of these labels; `rows` has the output of each of the data's classes.

    Raises:
        UserError: an image has no label.
    """
    require_label_each(labels)
    return rows[labels]


def rank_outputs(
    logits: Float[Tensor, "n outputs"], labels: Int[Tensor, " n"]
) -> Mapping[str, Tensor]:
    """The fields of `Predictions`."""
    first5 = logits.topk(min(5, logits.shape[1])).indices
    in_top5 = (first5 == labels[:, None]).any(dim=1)
    return Predictions(labels, logits.argmax(dim=1), in_top5)._asdict()


def output_names(
    classes: Sequence[str], rows: Sequence[int], outputs: int, known: Sequence[str]
) -> list[str]:
    """A name for each output of a head: its own, ImageNet's synset, the data's class, or its number."""
    names = list(known or imagenet_synsets(outputs) or map(str, range(outputs)))
    for name, row in zip(classes, rows, strict=True):
        # A folder named after its output's number is not a better name than the head's own.
        if name != str(row):
            names[row] = name
    return names


def tabulate(
    answers: Predictions, names: Sequence[str], judged: Sequence[int]
) -> tuple[dict[str, Iterable[Sequence[Any]]], list[str]]:
    """Rows of `per_class.csv` and `confusion.csv`, and a line on each of the worst classes.

    `judged` are the labels of the data's classes, each of which is a row.
    """
    confusion = count_confusion(answers, judged)
    metrics = by_class(answers, confusion)
    per_class: list[Sequence[Any]] = [
        ["class", "images", "correct", "top1", "top5", "most_often_taken_for"]
    ]
    for one in metrics:
        mistaken = "" if one.mistaken_for is None else names[one.mistaken_for]
        shares = [one.correct / one.images, one.in_top5 / one.images] if one.images else ["", ""]
        per_class.append([names[one.label], one.images, one.correct, *shares, mistaken])
    counts = [["class", *(names[column] for column in confusion.columns)]]
    counts += [
        [names[row], *of_row]
        for row, of_row in zip(confusion.rows, confusion.counts.tolist(), strict=True)
    ]
    present = [one for one in metrics if one.images]
    worst = sorted(present, key=lambda one: one.correct / one.images)[:_WORST_CLASSES]
    lines = [
        f"{names[one.label]}: {one.correct} of {one.images}"
        + ("" if one.mistaken_for is None else f", most often taken for {names[one.mistaken_for]}")
        for one in worst
    ]
    return {"per_class.csv": per_class, "confusion.csv": counts}, lines
