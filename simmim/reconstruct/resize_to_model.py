"""Fits images of any size to the encoder: a centre crop, resized or not."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Real
from torch import Tensor

from simmim.data.decoding.decode import read_image
from simmim.data.decoding.lazy_image import Box, DecodedImage
from simmim.data.transforms import CenterCrop
from simmim.utils.errors import UserError
from simmim.utils.sizes import Pair


class Fitted(NamedTuple):
    """An image fitted to the encoder, with the original `size` and the crop (`box`)."""

    path: Path
    size: Pair
    box: Box
    image: Real[Tensor, "c H W"]

    def describe(self) -> str:
        """A description: `cat.jpg 375×500: its middle 375×375, resized to 192×192`."""
        told = f"{self.path} {self.size[0]}×{self.size[1]}"
        part, target = (self.box.height, self.box.width), self.image.shape[-2:]
        changes = []
        if part != self.size:
            changes.append(f"its middle {part[0]}×{part[1]}")
        if part != target:
            changes.append(f"resized to {target[0]}×{target[1]}")
        return f"{told}: {', '.join(changes)}" if changes else told


def fit_image(path: Path, channels: int, size: Pair | None, multiple: int) -> Fitted:
    """Reads an image, and resizes its largest centre crop of the right aspect ratio to `size`.

    With `size` None, it is the largest centre crop whose sides are multiples of `multiple`, without
    resizing.

    Raises:
        UserError: the image cannot be read, or `size` is None and it is smaller than `multiple`.
    """
    image = read_image(path, channels)
    height, width = image.shape[-2:]
    if size is None:
        size = (height // multiple * multiple, width // multiple * multiple)
        if 0 in size:
            raise UserError(
                f"{path} has {height}×{width} pixels, and image_size=own needs {multiple} or more "
                "each way; leave image_size out"
            )
        box = Box((height - size[0]) // 2, (width - size[1]) // 2, *size)
        return Fitted(path, (height, width), box, DecodedImage(image).crop_resized(box, size))
    # The crop of validation, so that metrics are comparable to those of a run.
    crop = CenterCrop(size)
    return Fitted(path, (height, width), crop.choose(height, width), crop(image))


def alike(images: Iterator[Fitted], most: int) -> Iterator[list[Fitted]]:
    """Groups of at most `most` consecutive images with the same size and dtype."""
    group: list[Fitted] = []
    for one in images:
        if group and (len(group) == most or not _fits(one.image, group[0].image)):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def _fits(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype
