"""Logistic regression against scikit-learn's."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from simmim.evaluate import linear_probe
from simmim.evaluate.linear_probe import RegressionRecipe, fit_layer


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    middles = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (300,), generator=generator)
    noise = 2 * torch.randn(300, 6, generator=generator, dtype=torch.float64)
    return middles[labels] + noise, labels


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_the_minimum_is_that_of_scikit_learn(data, l2):
    features, labels = data
    theirs = LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-10, max_iter=10000)
    theirs.fit(features, labels)
    ours = fit_layer(features, labels, num_classes=4, l2=l2, max_iterations=1000)
    torch.testing.assert_close(ours.weight, torch.from_numpy(theirs.coef_), atol=1e-4, rtol=1e-4)
    # Softmax leaves a constant free.
    bias, their_bias = (b - b.mean() for b in (ours.bias, torch.from_numpy(theirs.intercept_)))
    torch.testing.assert_close(bias, their_bias, atol=1e-4, rtol=1e-4)


def test_chunks_change_nothing(data, monkeypatch):
    features, labels = data
    whole = fit_layer(features, labels, num_classes=4, l2=1e-2, max_iterations=200)
    monkeypatch.setattr(linear_probe, "_MOST_LOGITS", 4 * 7)
    parts = fit_layer(features, labels, num_classes=4, l2=1e-2, max_iterations=200)
    torch.testing.assert_close(parts.weight, whole.weight, atol=1e-5, rtol=1e-5)
    assert torch.equal(parts.rank_classes(features), whole.rank_classes(features))


def test_standardising_is_undone_in_the_layer(data):
    """Scale, shift and a channel that never differs make no difference to the answers."""
    features, labels = data
    recipe = RegressionRecipe(l2=[1e-2])
    plain = recipe.fit(features, labels, num_classes=4)
    moved = torch.cat([features * 1000 + 7, torch.full((300, 1), 5.0, dtype=torch.float64)], 1)
    other = recipe.fit(moved, labels, num_classes=4)
    torch.testing.assert_close(other.layer(moved), plain.layer(features), atol=1e-4, rtol=1e-4)
    assert plain.l2 == 1e-2


def test_the_strength_is_the_best_on_the_part_held_out():
    """Labels without any rule want the strongest: fewest of its answers are learnt by heart."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(400, 40, generator=generator)
    labels = (features[:, 0] + torch.randn(400, generator=generator) > 0).long()
    fitted = RegressionRecipe(l2=[1e-5, 1.0, 1e-1], held_out_share=0.5).fit(
        features, labels, num_classes=2
    )
    assert list(fitted.held_out_top1) == [1.0, 1e-1, 1e-5]
    assert fitted.held_out_top1[fitted.l2] == max(fitted.held_out_top1.values())
    assert fitted.held_out_top1[fitted.l2] > 0.6
    again = RegressionRecipe(l2=[1e-5, 1.0, 1e-1], held_out_share=0.5).fit(
        features, labels, num_classes=2
    )
    assert torch.equal(again.layer.weight, fitted.layer.weight)
