"""Which class each image was taken for, counted by class."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Predictions(NamedTuple):
    """For each image its class, what it was taken for, and whether its own was among the first 5."""

    labels: Int[Tensor, " n"]
    predicted: Int[Tensor, " n"]
    in_top5: Bool[Tensor, " n"]


class Confusion(NamedTuple):
    """How many images of each class in `rows` were taken for each class in `columns`."""

    rows: list[int]
    columns: list[int]
    counts: Int[Tensor, "rows columns"]


class ClassMetrics(NamedTuple):
    """What became of one class's images; `mistaken_for` is the commonest mistake, None without one."""

    label: int
    images: int
    correct: int
    in_top5: int
    mistaken_for: int | None


def rank_predictions(ranked: Int[Tensor, "n top"], labels: Int[Tensor, " n"]) -> Predictions:
    """The answers of classes in order of likelihood."""
    return Predictions(labels, ranked[:, 0], (ranked[:, :5] == labels[:, None]).any(dim=1))


def count_confusion(answers: Predictions, classes: Sequence[int]) -> Confusion:
    """The answers counted by class and by what it was taken for.

    Rows are `classes`, in order; columns are these and whatever else some image was taken for.
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
    """Metrics of each row of the confusion of these answers."""
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
