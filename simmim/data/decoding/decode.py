"""Image files to tensors: pictures as RGB or grey, bands of other kinds of data as they are.

What is asked for is a number of channels. Three are a picture in RGB, whatever Pillow mode it is
stored in, each converted so that it looks as it should; one is its grey. `.npy` arrays and TIFF files
that are no such pictures keep their values: uint8 as they are, every other type as float32 in the units
of the file.
"""

from io import BytesIO
from pathlib import Path

from jaxtyping import Real
from torch import Tensor

from simmim.data.decoding.bands import OpenFile, is_array, is_tiff, read_array
from simmim.data.decoding.jpeg import decode_crop, decode_whole, is_jpeg, upright_colour_size
from simmim.data.decoding.lazy_image import Box, DecodedImage, Interpolation, LazyImage
from simmim.data.decoding.pillow import DAMAGED, read_picture
from simmim.data.decoding.size_limits import require_size
from simmim.data.decoding.tiff import read_tiff
from simmim.data.unreadable.retry import unreadable
from simmim.utils.sizes import Pair

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".dib"),
        *(".gif", ".ppm", ".pgm", ".jp2", ".j2k", ".avif", ".npy"),
    }
)


def read_image(path: Path, channels: int = 3) -> Real[Tensor, "{channels} h w"]:
    """Reads a file (its first frame); uint8, or float32 where it holds values of another type.

    Pictures are upright by their EXIF orientation.

    Raises:
        UnreadableImageError: the file cannot be read, or has other channels; the message names it.
    """
    try:
        with path.open("rb") as file:
            return _decode(file, channels)
    except DAMAGED as error:
        raise unreadable(str(path), error) from error


def decode_image(data: bytes, name: str, channels: int = 3) -> Real[Tensor, "{channels} h w"]:
    """The same for a file's content; `name` tells an unreadable one in the message."""
    try:
        return _decode(BytesIO(data), channels)
    except DAMAGED as error:
        raise unreadable(name, error) from error


def open_image(path: Path, channels: int = 3) -> LazyImage:
    """The same as `read_image`, but for a JPEG file, which is decoded when its crop is known.

    Raises:
        UnreadableImageError: the file cannot be read, or has other channels; the message names it.
    """
    try:
        with path.open("rb") as file:
            return _open(file, str(path), channels)
    except DAMAGED as error:
        raise unreadable(str(path), error) from error


def open_encoded(data: bytes, name: str, channels: int = 3) -> LazyImage:
    """The same for a file's content."""
    try:
        return _open(BytesIO(data), name, channels)
    except DAMAGED as error:
        raise unreadable(name, error) from error


class LazyJpeg:
    """An upright picture in colour, decoded to the crop and resolution that are asked for."""

    def __init__(self, data: bytes, name: str, size: Pair) -> None:
        self.data = data
        self.name = name
        self.height, self.width = size

    def decode(self) -> Real[Tensor, "3 h w"]:
        """All of it, at its own size; UserError names one that cannot be read."""
        try:
            return decode_whole(self.data)
        except ValueError:
            return self._decode_by_pillow()

    def crop_resized(
        self, box: Box, size: Pair, interpolation: Interpolation = "bicubic"
    ) -> Real[Tensor, "3 h2 w2"]:
        """A part of it, resized; UserError names one that cannot be read."""
        try:
            return decode_crop(self.data, box, size, interpolation)
        except ValueError:
            return DecodedImage(self._decode_by_pillow()).crop_resized(box, size, interpolation)

    def _decode_by_pillow(self) -> Real[Tensor, "3 h w"]:
        """Which reads some damaged files, and has the word on the others."""
        return decode_image(self.data, self.name)


def _open(file: OpenFile, name: str, channels: int) -> LazyImage:
    if channels == 3 and is_jpeg(file.read(3)):
        file.seek(0)
        data = file.read()
        size = upright_colour_size(data)
        if size is not None:
            require_size(*size)
            return LazyJpeg(data, name, size)
    file.seek(0)
    return DecodedImage(_decode(file, channels))


def _decode(file: OpenFile, channels: int) -> Real[Tensor, "{channels} h w"]:
    """Told apart by content: a name may say anything."""
    start = file.read(8)
    file.seek(0)
    if not start:
        raise ValueError("it is empty")
    if is_array(start):
        return read_array(file, channels)
    if is_tiff(start):
        return read_tiff(file, channels)
    if channels not in (1, 3):
        raise ValueError(f"a picture of this format has 3 channels, not {channels}")
    return read_picture(file, channels)
