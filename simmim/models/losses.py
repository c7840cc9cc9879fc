"""SimMIM's loss and its targets (arXiv 2111.09886, section 3.4), all in float32."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from simmim.utils.errors import UserError

# The pixels that the loss covers: the masked ones, or the whole image.
LossRegion = Literal["masked", "image"]


def masked_l1(
    prediction: Float[Tensor, "b c H W"],
    target: Float[Tensor, "b c H W"],
    mask: Bool[Tensor, "b H W"],
) -> Float[Tensor, ""]:
    """Mean absolute difference over the masked pixels (True) and their channels."""
    difference = (prediction.float() - target.float()).abs() * mask.unsqueeze(1)
    return difference.sum() / (mask.sum() * target.shape[1])


def masked_l1_by_image(
    prediction: Float[Tensor, "b c H W"],
    target: Float[Tensor, "b c H W"],
    mask: Bool[Tensor, "b H W"],
) -> Float[Tensor, " b"]:
    """Mean absolute difference over the masked pixels and channels, per image."""
    difference = (prediction.float() - target.float()).abs() * mask.unsqueeze(1)
    return difference.sum(dim=(1, 2, 3)) / (mask.sum(dim=(1, 2)) * target.shape[1])


def image_l1(
    prediction: Float[Tensor, "b c H W"], target: Float[Tensor, "b c H W"]
) -> Float[Tensor, ""]:
    """Mean absolute difference over all pixels, including visible ones, and their channels."""
    return (prediction.float() - target.float()).abs().mean()


class LocalStatistics(NamedTuple):
    """Mean and standard deviation of each pixel's neighbourhood, per channel."""

    mean: Float[Tensor, "b c H W"]
    std: Float[Tensor, "b c H W"]

    def normalise(self, images: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
        """Images normalised by the mean and standard deviation of each pixel's neighbourhood."""
        return (images - self.mean) / self.std

    def invert(self, normalised: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
        """Undoes `normalise`."""
        return normalised * self.std + self.mean


def local_statistics(images: Float[Tensor, "b c H W"], window: int) -> LocalStatistics:
    """Statistics over `window × window` pixels, fewer at the border, for normalised targets.

    The variance is unbiased, plus 1e-6, as in the official SwinV2 recipe (window 47).

    Raises:
        UserError: an even window, or one under 3.
    """
    check_target_window(window)
    images = images.float()
    ones = images.new_ones(1, 1, *images.shape[-2:])
    count = _box_mean(ones, window, include_padding=True) * window**2
    mean = _box_mean(images, window)
    variance = (_box_mean(images**2, window) - mean**2) * (count / (count - 1))
    return LocalStatistics(mean, (variance.clamp(min=0) + 1e-6).sqrt())


def check_target_window(window: int) -> None:
    """Raises UserError unless `window` is an odd number of pixels, 3 or more."""
    if window < 3 or window % 2 == 0:
        raise UserError(
            f"target window {window} must be odd and at least 3, to have a centre; use 47"
        )


def _box_mean(
    images: Float[Tensor, "b c H W"], window: int, *, include_padding: bool = False
) -> Float[Tensor, "b c H W"]:
    """Mean over a square, separably by axis: 2 · window reads per pixel instead of window²."""
    half = window // 2
    rows = F.avg_pool2d(
        images, (window, 1), stride=1, padding=(half, 0), count_include_pad=include_padding
    )
    return F.avg_pool2d(
        rows, (1, window), stride=1, padding=(0, half), count_include_pad=include_padding
    )


@torch.no_grad()
def visible_mean(
    images: Float[Tensor, "b c H W"], mask: Bool[Tensor, "b H W"]
) -> Float[Tensor, "b c H W"]:
    """The baseline that a model must beat: every pixel is the mean of the image's visible pixels."""
    visible = ~mask.unsqueeze(1)
    total = (images.float() * visible).sum(dim=(2, 3), keepdim=True)
    return (total / visible.sum(dim=(2, 3), keepdim=True).clamp(min=1)).expand_as(images)


@torch.no_grad()
def nearest_visible(
    images: Float[Tensor, "b c H W"], mask: Bool[Tensor, "b H W"]
) -> Float[Tensor, "b c H W"]:
    """The copying baseline: each masked pixel takes the value of its exact nearest visible pixel.

    Visible pixels keep their value; an image without visible pixels becomes 0. The number of passes
    is the largest such distance in pixels, whatever the number of visible pixels.
    """
    batch, height, width = mask.shape
    rows = torch.arange(height, device=mask.device).view(1, -1, 1).expand_as(mask)
    # First the nearest visible row within each pixel's column, then the nearest over the columns.
    far = height + width
    above = rows.masked_fill(mask, -far).cummax(dim=1).values
    below = rows.masked_fill(mask, height + far).flip(1).cummin(dim=1).values.flip(1)
    row = torch.where(rows - above <= below - rows, above, below)
    in_column = (row - rows) ** 2
    distance = in_column.clone()
    source = row * width + torch.arange(width, device=mask.device)
    own = source.clone()
    for shift in range(1, width):
        if shift**2 >= distance.max():
            break
        for here, there in (
            (slice(shift, None), slice(None, -shift)),
            (slice(None, -shift), slice(shift, None)),
        ):
            candidate = in_column[..., there] + shift**2
            is_nearer = candidate < distance[..., here]
            distance[..., here] = torch.where(is_nearer, candidate, distance[..., here])
            source[..., here] = torch.where(is_nearer, own[..., there], source[..., here])
    flat = source.clamp(0, height * width - 1).view(batch, 1, -1)
    copied = images.float().flatten(2).gather(2, flat.expand(-1, images.shape[1], -1))
    is_blind = mask.all(dim=2).all(dim=1).view(-1, 1, 1, 1)
    return copied.view(images.shape).masked_fill(is_blind, 0)
