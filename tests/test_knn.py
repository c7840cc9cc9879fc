"""Votes of neighbours against scikit-learn's, whatever the chunks."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from simmim.evaluate import knn
from simmim.evaluate.knn import NeighbourVote


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    middles = torch.randn(6, 8, generator=generator)
    labels = torch.randint(6, (200,), generator=generator)
    features = middles[labels] + torch.randn(200, 8, generator=generator)
    return features[:150], labels[:150], features[150:]


@pytest.mark.parametrize("k", [1, 7, 150])
def test_votes_are_those_of_scikit_learn(data, k):
    features, labels, queries = data
    theirs = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(features, labels)
    votes = torch.from_numpy(theirs.predict_proba(queries))
    ranked = NeighbourVote(k, 0.07).rank_classes(queries, features, labels, num_classes=6)
    assert ranked.shape == (50, 5)
    expected = votes.topk(5)
    assert torch.equal(ranked, torch.where(expected.values > 0, expected.indices, -1))


def test_chunks_change_nothing(data, monkeypatch):
    features, labels, queries = data
    whole = NeighbourVote(5).rank_classes(queries, features, labels, num_classes=6)
    monkeypatch.setattr(knn, "_MOST_SIMILARITIES", 7 * 150)
    assert torch.equal(
        NeighbourVote(5).rank_classes(queries, features, labels, num_classes=6), whole
    )


def test_a_class_without_a_vote_is_no_answer():
    features = torch.eye(3)
    ranked = NeighbourVote(2).rank_classes(
        torch.tensor([[1.0, 0.9, 0.0]]), features, torch.tensor([4, 2, 0]), num_classes=6
    )
    assert ranked.tolist() == [[4, 2, -1, -1, -1]]


def test_no_temperature_overflows(data):
    features, labels, queries = data
    vote = NeighbourVote(20, 1e-4)
    ranked = vote.rank_classes(queries, features, labels, num_classes=6)
    nearest = NeighbourVote(1).rank_classes(queries, features, labels, num_classes=6)
    assert torch.equal(ranked[:, 0], nearest[:, 0])


def test_no_queries_and_more_neighbours_than_there_are(data):
    features, labels, queries = data
    vote = NeighbourVote(1000)
    assert vote.rank_classes(queries[:0], features, labels, num_classes=6).shape == (0, 5)
    assert vote.rank_classes(queries, features, labels, num_classes=6).shape == (50, 5)
