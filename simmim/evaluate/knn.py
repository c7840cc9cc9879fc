"""k-NN classification of features, which needs no training."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from simmim.utils.errors import UserError

# Similarities to hold in memory at once: 256 MB in float32.
_MOST_SIMILARITIES = 2**26


@dataclass(frozen=True)
class NeighbourVote:
    """Weighted k-NN (Wu et al., arXiv 1805.01978, section 3.4), with k and temperature of DINO.

    Attributes:
        k: number of neighbours that vote; all images if there are fewer.
        temperature: the weight of a vote is exp(cosine similarity / temperature).

    Raises:
        UserError: a value that is not positive.
    """

    k: int = 20
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"knn.k {self.k} leaves nobody to vote; use 20")
        if self.temperature <= 0:
            raise UserError(f"knn.temperature {self.temperature} is not positive; use 0.07")

    def require_neighbours(self, count: int) -> None:
        """Raises UserError if there are fewer training images than `k`."""
        if count < self.k:
            raise UserError(
                f"knn.k {self.k} is more than the {count} training images; "
                f"use knn.k={count} or less"
            )

    def rank_classes(
        self,
        queries: Float[Tensor, "q c"],
        features: Float[Tensor, "n c"],
        labels: Int[Tensor, " n"],
        *,
        num_classes: int,
        top: int = 5,
    ) -> Int[Tensor, "q top"]:
        """The `top` classes of each query by weight of votes, in descending order.

        Entries are -1 if fewer classes have votes. Queries are processed in chunks to bound memory.
        """
        top = min(top, num_classes)
        features = F.normalize(features, dim=1)
        chunk = max(1, _MOST_SIMILARITIES // max(len(features), num_classes))
        ranked = [
            self._rank_chunk(F.normalize(part, dim=1), features, labels, num_classes, top)
            for part in torch.split(queries, chunk)
        ]
        return torch.cat(ranked)

    def _rank_chunk(
        self,
        queries: Float[Tensor, "q c"],
        features: Float[Tensor, "n c"],
        labels: Int[Tensor, " n"],
        num_classes: int,
        top: int,
    ) -> Int[Tensor, "q top"]:
        similarity = queries @ features.T
        nearest = similarity.topk(min(self.k, len(features)), dim=1)
        # Relative to the nearest neighbour's, so that no temperature makes weights overflow.
        weights = ((nearest.values - nearest.values[:, :1]) / self.temperature).exp()
        votes = weights.new_zeros(len(queries), num_classes)
        votes.scatter_add_(1, labels[nearest.indices], weights)
        most = votes.topk(top, dim=1)
        return torch.where(most.values > 0, most.indices, -1)
