"""Limits on the sizes of images, checked in their headers before any pixel is decoded."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from PIL import Image

from simmim.utils.errors import UserError


@dataclass(frozen=True)
class Limits:
    """Sizes that an image may have.

    Attributes:
        max_pixels: height times width; decoding an image takes about ten bytes per pixel.
        min_side: smallest height or width, in pixels.
        max_aspect: largest ratio of the longer side to the shorter.
    """

    max_pixels: int = 178_956_970  # Pillow refuses larger ones, too
    min_side: int = 2
    max_aspect: float = 100.0

    def __post_init__(self) -> None:
        for name, value in (("max_pixels", self.max_pixels), ("min_side", self.min_side)):
            if value < 1:
                raise UserError(f"data.{name} {value} is not positive; use {getattr(Limits, name)}")
        if not self.max_aspect >= 1:
            raise UserError(f"data.max_aspect {self.max_aspect} is less than 1, a square; use 100")


# Beyond its limit, where simmim refuses an image, Pillow only warns; it refuses at twice that.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# If none are set: Pillow's own.
_LENIENT = Limits(min_side=1, max_aspect=float("inf"))
_LIMITS: ContextVar[Limits] = ContextVar("limits", default=_LENIENT)


@contextmanager
def limited(limits: Limits) -> Iterator[None]:
    """Within the block, images outside of these limits cannot be read.

    Pillow's own pixel limit is set, too: it also holds for images embedded in a file.
    """
    token = _LIMITS.set(limits)
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = limits.max_pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
        _LIMITS.reset(token)


def require_size(height: int, width: int, channels: int = 3) -> None:
    """Raises ValueError for an image whose size is outside of the limits.

    With more than three channels, correspondingly fewer pixels are allowed.
    """
    limits = _LIMITS.get()
    if height * width * max(channels, 3) > 3 * limits.max_pixels:
        what = f"{height} × {width} pixels"
        if channels > 3:
            what += f" of {channels} channels"
        raise ValueError(f"its {what} are more than data.max_pixels={limits.max_pixels} allows")
    if min(height, width) < limits.min_side:
        raise ValueError(
            f"a side of its {height} × {width} pixels is less than data.min_side={limits.min_side}"
        )
    if max(height, width) > limits.max_aspect * min(height, width):
        raise ValueError(
            f"its {height} × {width} pixels are longer than data.max_aspect={limits.max_aspect:g}"
        )
