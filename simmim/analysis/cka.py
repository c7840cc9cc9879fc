"""How alike two representations are: linear CKA (Kornblith et al., arXiv 1905.00414).

Layers of one encoder with each other, or with those of another encoder or checkpoint.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simmim.models.swin import SwinTransformer
from simmim.models.swin.hooks import block_outputs, eval_mode, observe
from simmim.utils.errors import UserError
from simmim.utils.sizes import Pair

# Fewer examples leave nothing of the estimate without bias.
_FEWEST = 4


def linear_cka(
    first: Float[Tensor, "n c1"], second: Float[Tensor, "n c2"], *, debiased: bool = True
) -> float:
    """How alike two features of the same n examples are: 1 is the same up to rotation and scale.

    ‖Y'X‖² / (‖X'X‖ · ‖Y'Y‖) in Frobenius norms, of centred features; 0 where one never varies.

    With few examples for many channels that is high for features that have nothing in common. With
    `debiased`, each of the three is estimated without that bias (HSIC₁ of Song et al., as Nguyen et
    al., arXiv 2010.15327, use it): about 0 for such features, and a little below by chance.

    Raises:
        UserError: fewer than 4 examples.
    """
    return float(layer_similarity({"": first}, {"": second}, debiased=debiased))


def layer_features(
    encoder: SwinTransformer, images: Float[Tensor, "b c H W"], grid: Pair
) -> dict[str, Float[Tensor, "n _c"]]:
    """The output of every block by its name, and `last`, what the encoder gives after its last norm.

    Examples are the places of all images on a `grid` of `(height, width)`, to which finer maps are
    averaged: the same ones whatever the layer. Normalised images go through in one batch.
    """
    layers: dict[str, Tensor] = {}

    def see(name: str, features: Tensor) -> None:
        pooled = F.adaptive_avg_pool2d(features.permute(0, 3, 1, 2).float(), grid)
        layers[name] = pooled.permute(0, 2, 3, 1).flatten(0, 2).cpu()

    with eval_mode(encoder), observe(block_outputs(encoder) | {"last": encoder.norm}, see):
        encoder(images)
    return layers


def layer_similarity(
    first: Mapping[str, Float[Tensor, "n _c"]],
    second: Mapping[str, Float[Tensor, "n _c2"]],
    *,
    debiased: bool = True,
) -> Float[Tensor, "layers others"]:
    """`linear_cka` of every layer of one encoder (rows) with every layer of the other (columns).

    `debiased`: by the estimate without bias, which few examples and many channels do not raise.

    Raises:
        UserError: fewer than 4 examples.
    """
    rows, columns = ([_centred(layer) for layer in layers.values()] for layers in (first, second))
    aligned = torch.stack(
        [torch.stack([_alignment(x, y, debiased) for y in columns]) for x in rows]
    )
    of_rows, of_columns = (
        torch.stack([_alignment(layer, layer, debiased) for layer in layers])
        for layers in (rows, columns)
    )
    # What never varies has no length; without bias it may be estimated to be negative.
    lengths = of_rows.clamp(min=0).sqrt()[:, None] * of_columns.clamp(min=0).sqrt()[None, :]
    return torch.where(lengths > 0, aligned / lengths, 0).float()


def _centred(features: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    if len(features) < _FEWEST:
        raise UserError(f"CKA of {len(features)} examples says nothing; give {_FEWEST} or more")
    return features.double() - features.double().mean(dim=0)


def _alignment(
    x: Float[Tensor, "n c1"], y: Float[Tensor, "n c2"], debiased: bool
) -> Float[Tensor, ""]:
    """‖Y'X‖², the inner product of the Gram matrices of centred features, or HSIC₁ up to a constant."""
    product = (y.T @ x).square().sum()
    if not debiased:
        return product
    # Without the diagonals of the Gram matrices, whose rows then no longer sum to 0.
    n = len(x)
    x_lengths, y_lengths = x.square().sum(dim=1), y.square().sum(dim=1)
    totals = x_lengths.sum() * y_lengths.sum()
    return product - n / (n - 2) * (x_lengths @ y_lengths) + totals / ((n - 1) * (n - 2))
