"""Probes of features whose answers are known."""

import torch

from simmim.analysis import probe
from simmim.evaluate.knn import NeighbourVote
from simmim.evaluate.linear_probe import RegressionRecipe
from simmim.evaluate.probe import LabelledFeatures


def test_a_linear_layer_finds_a_channel_that_neighbours_do_not_see():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(600, 20, generator=generator)
    # A hundredth of a channel tells the class; it is lost among the others' differences.
    labels = (values[:, 0] > 0).long()
    values[:, 0] /= 100
    judged = probe(
        LabelledFeatures(values[:400], labels[:400]),
        LabelledFeatures(values[400:], labels[400:]),
        num_classes=2,
        vote=NeighbourVote(k=5),
        regression=RegressionRecipe(l2=[1e-5]),
    )
    assert judged.linear_top1 > 0.95
    assert judged.knn_top1 < 0.65


def test_features_that_are_the_classes_are_told_by_both():
    labels = torch.arange(60) % 6
    features = LabelledFeatures(torch.eye(6)[labels], labels)
    judged = probe(features, features, num_classes=6, vote=NeighbourVote(k=3))
    assert judged == (1.0, 1.0)
