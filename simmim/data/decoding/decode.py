"""Decodes image files to tensors: photographs as RGB or grey, bands of other data as they are.

The number of channels decides. With three, images of any Pillow mode are converted to RGB; with
one, to grey. `.npy` arrays and TIFF files of measured values keep these: uint8 unchanged, every
other type as float32 in the units of the file.
"""

from io import BytesIO
from pathlib import Path

from jaxtyping import Real
from torch import Tensor

from simmim.data.decoding.jpeg import decode_crop, decode_whole, is_jpeg, upright_colour_size
from simmim.data.decoding.lazy_image import Box, DecodedImage, LazyImage
from simmim.data.decoding.npy import OpenFile, is_array, is_tiff, read_array
from simmim.data.decoding.pillow import DAMAGED, read_picture
from simmim.data.decoding.resize import Interpolation
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
    """Reads a file (its first frame) as uint8, or as float32 if it has values of another type.

    Images are turned upright by their EXIF orientation.

    Raises:
        UnreadableImageError: the file cannot be read, or has other channels; the message names it.
    """
    try:
        with path.open("rb") as file:
            return _decode(file, channels)
    except DAMAGED as error:
        raise unreadable(str(path), error) from error


def decode_image(data: bytes, name: str, channels: int = 3) -> Real[Tensor, "{channels} h w"]:
    """Like `read_image` for a file's content; `name` is its name in error messages."""
    try:
        return _decode(BytesIO(data), channels)
    except DAMAGED as error:
        raise unreadable(name, error) from error


def open_image(path: Path, channels: int = 3) -> LazyImage:
    """Like `read_image`, but a JPEG file is decoded only once its crop is known.

    Raises:
        UnreadableImageError: the file cannot be read, or has other channels; the message names it.
    """
    try:
        with path.open("rb") as file:
            return _open(file, str(path), channels)
    except DAMAGED as error:
        raise unreadable(str(path), error) from error


def open_encoded(data: bytes, name: str, channels: int = 3) -> LazyImage:
    """Like `open_image` for a file's content; `name` is its name in error messages."""
    try:
        return _open(BytesIO(data), name, channels)
    except DAMAGED as error:
        raise unreadable(name, error) from error


class LazyJpeg:
    """An upright colour JPEG, decoded only to the crop and resolution that are requested."""

    def __init__(self, data: bytes, name: str, size: Pair) -> None:
        self.data = data
        self.name = name
        self.height, self.width = size

    def decode(self) -> Real[Tensor, "3 h w"]:
        """The whole image at its own size; a UserError names it if it cannot be read."""
        try:
            return decode_whole(self.data)
        except ValueError:
            return self._decode_by_pillow()

    def crop_resized(
        self, box: Box, size: Pair, interpolation: Interpolation = "bicubic"
    ) -> Real[Tensor, "3 h2 w2"]:
        """A crop, resized; a UserError names the image if it cannot be read."""
        try:
            return decode_crop(self.data, box, size, interpolation)
        except ValueError:
            return DecodedImage(self._decode_by_pillow()).crop_resized(box, size, interpolation)

    def _decode_by_pillow(self) -> Real[Tensor, "3 h w"]:
        """Decodes with Pillow, which reads some damaged files and reports what is wrong with others."""
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
    """Chooses the reader by the file's content, as its name may be wrong."""
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
