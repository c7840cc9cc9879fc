"""Linear probe: multinomial logistic regression on frozen features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from simmim.utils.errors import UserError

# Logits to hold in memory at once: 256 MB in float32.
_MOST_LOGITS = 2**26


class LinearLayer(NamedTuple):
    """A linear classifier: `features @ weight.T + bias`."""

    weight: Float[Tensor, "classes c"]
    bias: Float[Tensor, " classes"]

    def __call__(self, features: Float[Tensor, "n c"]) -> Float[Tensor, "n classes"]:
        """Logits."""
        return F.linear(features, self.weight, self.bias)

    def rank_classes(self, features: Float[Tensor, "n c"], top: int = 5) -> Int[Tensor, "n top"]:
        """The `top` classes of each image (all if there are fewer), the most likely first."""
        top = min(top, len(self.bias))
        chunk = max(1, _MOST_LOGITS // len(self.bias))
        return torch.cat(
            [self(part).topk(top, dim=1).indices for part in torch.split(features, chunk)]
        )


class Regression(NamedTuple):
    """The fitted layer, for features that are not standardised, and its L2 strength.

    `held_out_top1` is top-1 on the held-out part by L2 strength, by which `l2` was chosen.
    """

    layer: LinearLayer
    l2: float
    held_out_top1: dict[float, float]


@dataclass(frozen=True)
class RegressionRecipe:
    """Logistic regression by L-BFGS on standardised features, with L2 chosen on a held-out part.

    Attributes:
        l2: strengths to choose from, relative to the mean loss (see `fit_layer`).
        held_out_share: share of the training images that is held out for this choice.
        max_iterations: maximum number of L-BFGS iterations per fit.

    Raises:
        UserError: a value out of range.
    """

    l2: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
    held_out_share: float = 0.1
    max_iterations: int = 500

    def __post_init__(self) -> None:
        if not self.l2 or min(self.l2) <= 0:
            raise UserError(f"linear.l2 {list(self.l2)} are not positive numbers; use [1e-3]")
        if not 0 < self.held_out_share < 1:
            raise UserError(
                f"linear.held_out_share {self.held_out_share} is not between 0 and 1; use 0.1"
            )
        if self.max_iterations < 1:
            raise UserError(f"linear.max_iterations {self.max_iterations} is not positive; use 500")

    def fit(
        self,
        features: Float[Tensor, "n c"],
        labels: Int[Tensor, " n"],
        *,
        num_classes: int,
        seed: int = 0,
    ) -> Regression:
        """Chooses the L2 strength on a held-out part, then fits all images with it."""
        std, mean = torch.std_mean(features, dim=0, correction=0)
        # A constant channel carries no information and is not scaled.
        std = torch.where(std > 0, std, 1)
        standardised = (features - mean) / std
        metrics = self._try(standardised, labels, num_classes, seed)
        # For ties, `max` returns the first, which is the strongest.
        l2 = max(metrics, key=lambda strength: metrics[strength])
        layer = fit_layer(
            standardised,
            labels,
            num_classes=num_classes,
            l2=l2,
            max_iterations=self.max_iterations,
        )
        weight = layer.weight / std
        return Regression(LinearLayer(weight, layer.bias - weight @ mean), l2, metrics)

    def _try(
        self,
        features: Float[Tensor, "n c"],
        labels: Int[Tensor, " n"],
        num_classes: int,
        seed: int,
    ) -> dict[float, float]:
        """Top-1 on the held-out part by L2 strength, the strongest first."""
        strengths = sorted(self.l2, reverse=True)
        if len(strengths) == 1:
            return {strengths[0]: float("nan")}
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        held_out_count = min(max(1, round(self.held_out_share * len(labels))), len(labels) - 1)
        held_out, fitted = order.to(labels.device).tensor_split([held_out_count])
        metrics = {}
        layer: LinearLayer | None = None
        for l2 in strengths:
            # Warm start from the solution for the previous strength.
            layer = fit_layer(
                features[fitted],
                labels[fitted],
                num_classes=num_classes,
                l2=l2,
                max_iterations=self.max_iterations,
                start=layer,
            )
            right = layer.rank_classes(features[held_out], top=1)[:, 0] == labels[held_out]
            metrics[l2] = float(right.double().mean())
        return metrics


def fit_layer(
    features: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    *,
    num_classes: int,
    l2: float,
    max_iterations: int,
    start: LinearLayer | None = None,
) -> LinearLayer:
    """The layer that minimises mean cross-entropy + l2 / 2 · ‖weight‖²; the bias has no penalty.

    Equivalent to scikit-learn's `LogisticRegression(C=1 / (l2 * n))`. Images are processed in
    chunks to bound memory.
    """
    if start is None:
        start = LinearLayer(
            features.new_zeros(num_classes, features.shape[1]), features.new_zeros(num_classes)
        )
    weight, bias = (tensor.clone().requires_grad_() for tensor in start)
    chunk = max(1, _MOST_LOGITS // num_classes)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iterations,
        history_size=10,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = l2 / 2 * weight.square().sum()
        torch.autograd.backward(loss)
        total = loss.detach()
        for part, targets in zip(
            *(torch.split(data, chunk) for data in (features, labels)), strict=True
        ):
            logits = F.linear(part, weight, bias)
            loss = F.cross_entropy(logits, targets, reduction="sum") / len(labels)
            torch.autograd.backward(loss)
            total = total + loss.detach()
        return float(total)

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return LinearLayer(weight.detach(), bias.detach())
