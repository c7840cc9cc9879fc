"""Confusion counts and metrics per class."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Predictions(NamedTuple):
    """For each image: its class, the predicted class, and whether its class is in the top 5."""

    labels: Int[Tensor, " n"]
    predicted: Int[Tensor, " n"]
    in_top5: Bool[Tensor, " n"]


class Confusion(NamedTuple):
    """The number of images of each class in `rows` predicted as each class in `columns`."""

    rows: list[int]
    columns: list[int]
    counts: Int[Tensor, "rows columns"]


class ClassMetrics(NamedTuple):
    """Counts for one class; `mistaken_for` is the most frequent wrong prediction, None without any."""

    label: int
    images: int
    correct: int
    in_top5: int
    mistaken_for: int | None


def rank_predictions(ranked: Int[Tensor, "n top"], labels: Int[Tensor, " n"]) -> Predictions:
    """Predictions from classes ranked by likelihood, the most likely first."""
    return Predictions(labels, ranked[:, 0], (ranked[:, :5] == labels[:, None]).any(dim=1))


def count_confusion(answers: Predictions, classes: Sequence[int]) -> Confusion:
    """Counts `answers` by true class and predicted class.

    Rows are the sorted `classes`; columns are these and all other predicted classes.
    """
    labels, predicted = answers.labels.cpu(), answers.predicted.cpu()
    rows = torch.tensor(sorted(classes))
    columns = torch.tensor(sorted({*classes, *predicted.tolist()}))
    row = torch.searchsorted(rows, labels.contiguous())
    column = torch.searchsorted(columns, predicted.contiguous())
    places = row * len(columns) + column
    counts = places.bincount(minlength=len(rows) * len(columns)).view(len(rows), len(columns))
    return Confusion(rows.tolist(), columns.tolist(), counts)


def by_class(answers: Predictions, confusion: Confusion) -> list[ClassMetrics]:
    """Metrics of each class in the rows of the `confusion` of these `answers`."""
    hits = answers.labels[answers.in_top5].cpu()
    in_top5 = hits.bincount(minlength=max(confusion.rows) + 1)
    place = {label: column for column, label in enumerate(confusion.columns)}
    metrics = []
    for label, counts in zip(confusion.rows, confusion.counts, strict=True):
        own = place[label]
        mistakes = counts.clone()
        mistakes[own] = 0
        commonest = int(mistakes.argmax())
        metrics.append(
            ClassMetrics(
                label,
                images=int(counts.sum()),
                correct=int(counts[own]),
                in_top5=int(in_top5[label]),
                mistaken_for=confusion.columns[commonest] if mistakes[commonest] else None,
            )
        )
    return metrics
