"""Exact mean and standard deviation of each channel over a source, which may be read in parts."""

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float, Real
from torch import Tensor

from simmim.data.dataset import ImageSource
from simmim.utils.errors import UserError


class ChannelStatistics(NamedTuple):
    """Finite values of each channel: their number, mean, and sum of squared deviations from it.

    In float64. uint8 values are scaled to [0, 1], as by `Normalisation`; other values are not.
    `is_scaled` says which.
    """

    number: Float[Tensor, " c"]
    mean: Float[Tensor, " c"]
    squares: Float[Tensor, " c"]
    is_scaled: bool

    @property
    def std(self) -> Float[Tensor, " c"]:
        """Standard deviation of the population: divided by the number of values."""
        return (self.squares / self.number).sqrt()

    def merge(self, other: "ChannelStatistics") -> "ChannelStatistics":
        """Statistics of both parts together (Chan, Golub and LeVeque, 1979); order hardly matters.

        Raises:
            UserError: one part is scaled and the other is not: their values have no common unit.
        """
        if self.is_scaled != other.is_scaled:
            raise UserError(
                "some images hold uint8 and others values of another type; convert them to one type"
            )
        number = self.number + other.number
        share = other.number / number.clamp(min=1)
        distance = other.mean - self.mean
        return ChannelStatistics(
            number,
            self.mean + distance * share,
            self.squares + other.squares + distance**2 * self.number * share,
            self.is_scaled,
        )


def image_statistics(image: Real[Tensor, "c h w"]) -> ChannelStatistics:
    """Statistics of one image; values that are not finite do not count."""
    is_scaled = image.dtype == torch.uint8
    values = image.double().flatten(1) / (255 if is_scaled else 1)
    finite = values.isfinite()
    number = finite.sum(1).double()
    mean = values.where(finite, 0).sum(1) / number.clamp(min=1)
    squares = (values - mean[:, None]).where(finite, 0).square().sum(1)
    return ChannelStatistics(number, mean, squares, is_scaled)


class PartStatistics(NamedTuple):
    """Statistics of a part of a source (None: no readable image), and errors of unreadable images."""

    statistics: ChannelStatistics | None
    errors: list[str]


def part_statistics(source: ImageSource, indices: Iterable[int]) -> PartStatistics:
    """Statistics of some images of a source; unreadable ones are left out and reported."""
    parts, errors = [], []
    for index in indices:
        try:
            parts.append(image_statistics(source.load(index)[0]))
        except UserError as error:
            errors.append(str(error))
    return PartStatistics(reduce(ChannelStatistics.merge, parts) if parts else None, errors)
