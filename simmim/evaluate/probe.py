"""Quality of features without fine-tuning: k-NN and linear probe accuracy."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from simmim.evaluate.knn import NeighbourVote
from simmim.evaluate.linear_probe import RegressionRecipe


class LabelledFeatures(NamedTuple):
    """One vector per image, with its label."""

    values: Float[Tensor, "n c"]
    labels: Int[Tensor, " n"]


class Probe(NamedTuple):
    """Top-1 accuracy on held-out images, by k-NN and by a linear layer."""

    knn_top1: float
    linear_top1: float


def probe(
    train: LabelledFeatures,
    held_out: LabelledFeatures,
    *,
    num_classes: int,
    vote: NeighbourVote = NeighbourVote(),
    regression: RegressionRecipe = RegressionRecipe(),
    seed: int = 0,
) -> Probe:
    """Evaluates `held_out` features given those of `train`, as `python -m simmim.evaluate` does.

    `vote` sets the options of k-NN, and `regression` those of the linear layer.
    """
    neighbours = vote.rank_classes(
        held_out.values, train.values, train.labels, num_classes=num_classes, top=1
    )
    fitted = regression.fit(train.values, train.labels, num_classes=num_classes, seed=seed)
    ranked = fitted.layer.rank_classes(held_out.values, top=1)
    return Probe(
        *(
            float((answers[:, 0] == held_out.labels).double().mean())
            for answers in (neighbours, ranked)
        )
    )
