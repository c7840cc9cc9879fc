"""Similarity of representations: linear CKA (Kornblith et al., arXiv 1905.00414).

Compares layers within one encoder, or with those of another encoder or checkpoint.
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

# The debiased estimate is not defined for fewer examples.
_FEWEST = 4


def linear_cka(
    first: Float[Tensor, "n c1"], second: Float[Tensor, "n c2"], *, debiased: bool = True
) -> float:
    """Similarity of two features of the same n examples; 1 means equal up to rotation and scale.

    ‖Y'X‖² / (‖X'X‖ · ‖Y'Y‖) with Frobenius norms of centred features; 0 if one of them is constant.

    With few examples and many channels, this is high even for unrelated features. With `debiased`,
    each of the three terms is estimated without that bias (HSIC₁ of Song et al., as in Nguyen et
    al., arXiv 2010.15327): about 0 for unrelated features, possibly slightly negative.

    Raises:
        UserError: fewer than 4 examples.
    """
    return float(layer_similarity({"": first}, {"": second}, debiased=debiased))


def layer_features(
    encoder: SwinTransformer, images: Float[Tensor, "b c H W"], grid: Pair
) -> dict[str, Float[Tensor, "n _c"]]:
    """The output of every block by name, and the encoder's output after its last norm as `last`.

    Examples are the positions of all images on a `grid` of `(height, width)`, to which finer maps
    are average-pooled, so that all layers have the same ones. Takes one batch of normalised images.
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

    `debiased` is as in `linear_cka`.

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
    # The norm of constant features is 0; its debiased estimate may be negative.
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
    # Excludes the diagonals of the Gram matrices, and corrects for rows that no longer sum to 0.
    n = len(x)
    x_lengths, y_lengths = x.square().sum(dim=1), y.square().sum(dim=1)
    totals = x_lengths.sum() * y_lengths.sum()
    return product - n / (n - 2) * (x_lengths @ y_lengths) + totals / ((n - 1) * (n - 2))
