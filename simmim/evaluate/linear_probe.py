"""Multinomial logistic regression on features that stay as they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from simmim.utils.errors import UserError

# Logits that are held at once: 256 MB in float32.
_MOST_LOGITS = 2**26


class LinearLayer(NamedTuple):
    """Class scores of features: `features @ weight.T + bias`."""

    weight: Float[Tensor, "classes c"]
    bias: Float[Tensor, " classes"]

    def __call__(self, features: Float[Tensor, "n c"]) -> Float[Tensor, "n classes"]:
        """Logits."""
        return F.linear(features, self.weight, self.bias)

    def rank_classes(self, features: Float[Tensor, "n c"], top: int = 5) -> Int[Tensor, "n top"]:
        """The `top` classes of each image, the likeliest first (all, where there are fewer)."""
        top = min(top, len(self.bias))
        chunk = max(1, _MOST_LOGITS // len(self.bias))
        return torch.cat(
            [self(part).topk(top, dim=1).indices for part in torch.split(features, chunk)]
        )


class Regression(NamedTuple):
    """The layer, for features as they come, with the strength of L2 that was chosen for it.

    `held_out_top1` is what that choice rests on: top-1 on the part that was held out, by strength.
    """

    layer: LinearLayer
    l2: float
    held_out_top1: dict[float, float]


@dataclass(frozen=True)
class RegressionRecipe:
    """Logistic regression by L-BFGS on standardised features, its L2 chosen on a part held out.

    Attributes:
        l2: strengths to choose among, relative to the mean loss (see `fit_layer`).
        held_out_share: the part of the training images that the choice is made on.
        max_iterations: of L-BFGS, for each fit.

    Raises:
        UserError: a value out of its range.
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
        """Chooses the strength on a part of the images and fits them all with it."""
        std, mean = torch.std_mean(features, dim=0, correction=0)
        # A channel that never differs tells nothing, and is not blown up.
        std = torch.where(std > 0, std, 1)
        standardised = (features - mean) / std
        metrics = self._try(standardised, labels, num_classes, seed)
        # Of equally good ones, the strongest: it comes first.
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
        """Top-1 on the part that is held out, by strength, strongest first."""
        strengths = sorted(self.l2, reverse=True)
        if len(strengths) == 1:
            return {strengths[0]: float("nan")}
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        held_out_count = min(max(1, round(self.held_out_share * len(labels))), len(labels) - 1)
        held_out, fitted = order.to(labels.device).tensor_split([held_out_count])
        metrics = {}
        layer: LinearLayer | None = None
        for l2 in strengths:
            # Each starts from the one before, which is near.
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
    """The layer that minimises mean cross-entropy + l2 / 2 · ‖weight‖², the bias left free.

    scikit-learn's `LogisticRegression(C=1 / (l2 * n))`. Memory is bounded, however many images
    there are.
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
