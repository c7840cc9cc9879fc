"""Principal components of features, and feature maps coloured by the first three."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from simmim.models.swin import SwinTransformer
from simmim.models.swin.hooks import eval_mode
from simmim.utils.errors import UserError

# The share of values clipped at either end, so that outliers do not make all other tokens grey.
_TAIL = 0.01


class PrincipalComponents(NamedTuple):
    """The principal components of features, by decreasing variance.

    Attributes:
        mean: the mean of the features.
        directions: unit vectors, each with its largest entry (in magnitude) positive.
        shares: the share of the total variance, by direction.
    """

    mean: Float[Tensor, " c"]
    directions: Float[Tensor, "k c"]
    shares: Float[Tensor, " k"]

    def project(self, features: Float[Tensor, "n c"]) -> Float[Tensor, "n k"]:
        """The features' coordinates along the directions."""
        return (features - self.mean) @ self.directions.T


class FeaturePictures(NamedTuple):
    """Feature maps as RGB `colours` from 0 to 1; `shares` of the total variance by colour channel."""

    colours: Float[Tensor, "b h w 3"]
    shares: Float[Tensor, " 3"]


def principal_components(features: Float[Tensor, "n c"], count: int = 3) -> PrincipalComponents:
    """The first `count` principal components, computed in float64.

    Raises:
        UserError: more components than there are examples or channels.
    """
    if not 1 <= count <= min(features.shape):
        raise UserError(
            f"{count} principal components of {len(features)} examples with {features.shape[1]} "
            f"channels; use 1 to {min(features.shape)}"
        )
    mean = features.double().mean(dim=0)
    centred = features.double() - mean
    # There are usually fewer channels than examples: the channel covariance is the smaller matrix.
    variances, vectors = torch.linalg.eigh(centred.T @ centred)
    variances, directions = variances.flip(0).clamp(min=0), vectors.T.flip(0)[:count]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    # If all features are equal, all shares are 0.
    shares = variances[:count] / variances.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return PrincipalComponents(mean.float(), (directions * largest.sign()).float(), shares.float())


def feature_pictures(
    encoder: SwinTransformer, images: Float[Tensor, "b c H W"]
) -> list[FeaturePictures]:
    """Each stage's feature maps, finest first, coloured by three components shared by all images.

    Within a stage, similar colours mean similar features, also across the (normalised) images.
    """
    with eval_mode(encoder):
        pyramid = encoder.feature_pyramid(images)
    pictures = []
    for level in pyramid:
        maps = level.permute(0, 2, 3, 1).float().cpu()
        tokens = maps.flatten(0, 2)
        components = principal_components(tokens, 3)
        values = components.project(tokens)
        low, high = values.quantile(_TAIL, dim=0), values.quantile(1 - _TAIL, dim=0)
        scaled = (values - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
        colours = scaled.clamp(0, 1).view(*maps.shape[:3], 3)
        pictures.append(FeaturePictures(colours, components.shares))
    return pictures
