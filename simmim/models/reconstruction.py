"""Masking images and reconstructing them with a model, for training and for figures."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor

from simmim.models.losses import (
    LocalStatistics,
    local_statistics,
    masked_l1,
    masked_l1_by_image,
    nearest_visible,
    visible_mean,
)
from simmim.models.masking import cut_squares, enlarge, masked_tokens
from simmim.models.simmim import SimMIM
from simmim.utils.normalization import Normalisation


class Hidden(NamedTuple):
    """A batch before the model: normalised images, the token mask and the targets."""

    images: Float[Tensor, "b c H W"]
    mask: Bool[Tensor, "b h w"]
    target: Float[Tensor, "b c H W"]
    statistics: LocalStatistics | None


class Reconstruction(NamedTuple):
    """A batch after the model: normalised images, the pixel mask, the targets and the prediction.

    If `statistics` is given, `target` and `prediction` are normalised by each pixel's
    neighbourhood.
    """

    images: Float[Tensor, "b c H W"]
    mask: Bool[Tensor, "b H W"]
    target: Float[Tensor, "b c H W"]
    prediction: Float[Tensor, "b c H W"]
    statistics: LocalStatistics | None

    @property
    def loss(self) -> Float[Tensor, ""]:
        """The masked L1 loss."""
        return masked_l1(self.prediction, self.target, self.mask)

    @property
    def predicted_images(self) -> Float[Tensor, "b c H W"]:
        """The normalised images, with the prediction pasted into the masked pixels."""
        prediction = self.prediction.float()
        if self.statistics is not None:
            prediction = self.statistics.invert(prediction)
        return torch.where(self.mask.unsqueeze(1), prediction, self.images)


def hide(
    images: Real[Tensor, "b c H W"],
    mask: Bool[Tensor, "b h w"],
    normalisation: Normalisation,
    target_window: int | None,
) -> Hidden:
    """Normalises the images and computes the targets.

    The targets are the normalised pixels, or those normalised again by each pixel's neighbourhood
    of `target_window` pixels a side (None: not normalised again).
    """
    normalised = normalisation.normalise(images)
    if target_window is None:
        return Hidden(normalised, mask, normalised, None)
    statistics = local_statistics(normalised, target_window)
    return Hidden(normalised, mask, statistics.normalise(normalised), statistics)


def fill_in(model: SimMIM, hidden: Hidden) -> Reconstruction:
    """Makes the `model` predict the whole images from the visible part of the `hidden` batch."""
    prediction = model(hidden.images, hidden.mask)
    pixels = enlarge(hidden.mask, model.encoder.patch_size)
    return Reconstruction(hidden.images, pixels, hidden.target, prediction, hidden.statistics)


class MaskedL1(NamedTuple):
    """Masked L1 of each image, for the model and for the two baselines."""

    model: Float[Tensor, " b"]
    visible_mean: Float[Tensor, " b"]
    nearest_visible: Float[Tensor, " b"]


def masked_l1_as_trained(result: Reconstruction) -> MaskedL1:
    """Masked L1 in the units of the loss: normalised images, or normalised targets."""
    return _compare(result.prediction, result.target, result.mask)


def masked_l1_of_pictures(result: Reconstruction, unit: Float[Tensor, " c"]) -> MaskedL1:
    """Masked L1 in the units of the raw images; `unit` is the standard deviation of each channel."""
    scale = unit.view(-1, 1, 1)
    return _compare(result.predicted_images * scale, result.images * scale, result.mask)


def _compare(
    prediction: Float[Tensor, "b c H W"],
    target: Float[Tensor, "b c H W"],
    mask: Bool[Tensor, "b H W"],
) -> MaskedL1:
    guesses = (prediction, visible_mean(target, mask), nearest_visible(target, mask))
    return MaskedL1(*(masked_l1_by_image(guess, target, mask) for guess in guesses))


def loss_of_masked(
    model: SimMIM,
    images: Float[Tensor, "b c H W"],
    mask: Bool[Tensor, "b h w"],
    target: Float[Tensor, "b c H W"],
    most_tokens: int,
) -> Float[Tensor, ""]:
    """Masked L1 that predicts only squares with a masked pixel, at most `most_tokens` per image."""
    encoder = model.encoder
    tokens = masked_tokens(mask, encoder.stride // encoder.patch_size, most_tokens)
    pixels = enlarge(mask, encoder.patch_size)
    return masked_l1(
        model(images, mask, tokens),
        cut_squares(target, tokens, encoder.stride),
        cut_squares(pixels, tokens, encoder.stride),
    )
