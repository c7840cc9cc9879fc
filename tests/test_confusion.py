"""Answers counted by class."""

import torch

from simmim.tasks.classification.confusion import (
    Predictions,
    by_class,
    count_confusion,
    rank_predictions,
)


def test_answers_of_ranked_classes():
    ranked = torch.tensor([[2, 0, 1], [0, 2, -1], [1, -1, -1]])
    found = rank_predictions(ranked, torch.tensor([0, 0, 0]))
    assert found.predicted.tolist() == [2, 0, 1]
    assert found.in_top5.tolist() == [True, True, False]


def test_rows_are_the_classes_asked_for_and_columns_all_that_was_said():
    answers = Predictions(
        torch.tensor([3, 3, 3, 1]),
        torch.tensor([3, 8, 8, 1]),
        torch.tensor([True, True, False, True]),
    )
    confusion = count_confusion(answers, [3, 1, 5])
    assert confusion.rows == [1, 3, 5]
    assert confusion.columns == [1, 3, 5, 8]
    assert confusion.counts.tolist() == [[1, 0, 0, 0], [0, 1, 0, 2], [0, 0, 0, 0]]
    figures = by_class(answers, confusion)
    assert [(one.label, one.images, one.correct, one.in_top5) for one in figures] == [
        (1, 1, 1, 1),
        (3, 3, 1, 2),
        (5, 0, 0, 0),
    ]
    assert [one.mistaken_for for one in figures] == [None, 8, None]
