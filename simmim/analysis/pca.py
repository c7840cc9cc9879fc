"""Principal components of features, and feature maps as pictures of the first three."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from simmim.models.swin import SwinTransformer
from simmim.models.swin.hooks import eval_mode
from simmim.utils.errors import UserError

# So much of the values at either end is cut off, so that a few tokens do not make all others grey.
_TAIL = 0.01


class PrincipalComponents(NamedTuple):
    """The directions in which features differ most, the most telling first.

    Attributes:
        mean: of the features.
        directions: of unit length, each with its largest entry positive.
        shares: of the whole variance, by direction.
    """

    mean: Float[Tensor, " c"]
    directions: Float[Tensor, "k c"]
    shares: Float[Tensor, " k"]

    def project(self, features: Float[Tensor, "n c"]) -> Float[Tensor, "n k"]:
        """The features' coordinates along the directions."""
        return (features - self.mean) @ self.directions.T


class FeaturePictures(NamedTuple):
    """Feature maps as red, green and blue from 0 to 1, and the shares of variance that these have."""

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
    # Channels are few and examples many: their covariance is the smaller problem.
    variances, vectors = torch.linalg.eigh(centred.T @ centred)
    variances, directions = variances.flip(0).clamp(min=0), vectors.T.flip(0)[:count]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    # Where nothing differs, no direction has a share.
    shares = variances[:count] / variances.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return PrincipalComponents(mean.float(), (directions * largest.sign()).float(), shares.float())


def feature_pictures(
    encoder: SwinTransformer, images: Float[Tensor, "b c H W"]
) -> list[FeaturePictures]:
    """Each stage's feature maps, finest first, by three components that all images share.

    Like colours are like features, across the images of a stage. The images are normalised.
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
