"""Images that are decoded only once it is known which pixels are needed.

A crop can be drawn from an image's size alone, which is in the file's header. A transform therefore
gets a `LazyImage`: already decoded, or a file of which only the crop is decoded.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Real
from torch import Tensor

from simmim.data.decoding.resize import Interpolation, resize
from simmim.utils.sizes import Pair


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


@runtime_checkable
class LazyImage(Protocol):
    """An image of known size that may not be decoded yet."""

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""

    @property
    def width(self) -> int:
        """Pixels from left to right."""

    def decode(self) -> Real[Tensor, "c h w"]:
        """The whole image, at its own size.

        Raises:
            UserError: it cannot be read.
        """

    def crop_resized(
        self, box: Box, size: Pair, interpolation: Interpolation = "bicubic"
    ) -> Real[Tensor, "c h2 w2"]:
        """A crop, resized to (height, width), antialiased.

        Raises:
            UserError: it cannot be read.
        """


class DecodedImage:
    """An image that is already decoded."""

    def __init__(self, image: Real[Tensor, "c h w"]) -> None:
        self.image = image
        self.height, self.width = image.shape[-2:]

    def decode(self) -> Real[Tensor, "c h w"]:
        """The image."""
        return self.image

    def crop_resized(
        self, box: Box, size: Pair, interpolation: Interpolation = "bicubic"
    ) -> Real[Tensor, "c h2 w2"]:
        """A crop, resized."""
        top, left, height, width = box
        part = self.image[None, :, top : top + height, left : left + width]
        return resize(part, size, interpolation)[0]


@runtime_checkable
class CroppingTransform(Protocol):
    """A transform that starts with a crop, so that not all of an image has to be decoded."""

    def __call__(self, image: Real[Tensor, "c h w"]) -> Real[Tensor, "c h2 w2"]:
        """Transforms a decoded image."""

    def from_picture(self, picture: LazyImage) -> Real[Tensor, "c h2 w2"]:
        """Transforms an image that may not be decoded yet."""
