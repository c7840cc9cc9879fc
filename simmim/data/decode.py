"""Image files to tensors: pictures as RGB or grey, bands of other kinds of data as they are.

What is asked for is a number of channels. Three are a picture in RGB, whatever Pillow mode it is
stored in, each converted so that it looks as it should; one is its grey. `.npy` arrays and TIFF files
that are no such pictures keep their values: uint8 as they are, every other type as float32 in the units
of the file.
"""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Real
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from simmim.data.bands import OpenFile, is_array, is_tiff, read_array, read_tiff
from simmim.data.jpeg import decode_crop, decode_whole, is_jpeg, upright_colour_size
from simmim.data.limits import require_size
from simmim.data.pictures import Box, Interpolation, Picture, Pixels
from simmim.data.unreadable import unreadable
from simmim.sizes import Pair

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".dib"),
        *(".gif", ".ppm", ".pgm", ".jp2", ".j2k", ".avif", ".npy"),
    }
)

# Pillow knows more, of which some run other programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "DIB", "PPM", "JPEG2000", "AVIF")

_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")

# What turns an image upright, by its EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What the readers raise for a damaged file: Pillow's stumble over fields of unexpected types, too.
_DAMAGED = (
    *(OSError, EOFError, SyntaxError, ValueError, MemoryError, Image.DecompressionBombError),
    *(TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, AssertionError),
    *(struct.error, zlib.error),
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
    except _DAMAGED as error:
        raise unreadable(str(path), error) from error


def decode_image(data: bytes, name: str, channels: int = 3) -> Real[Tensor, "{channels} h w"]:
    """The same for a file's content; `name` tells an unreadable one in the message."""
    try:
        return _decode(BytesIO(data), channels)
    except _DAMAGED as error:
        raise unreadable(name, error) from error


def open_image(path: Path, channels: int = 3) -> Picture:
    """The same as `read_image`, but for a JPEG file, which is decoded when its crop is known.

    Raises:
        UnreadableImageError: the file cannot be read, or has other channels; the message names it.
    """
    try:
        with path.open("rb") as file:
            return _open(file, str(path), channels)
    except _DAMAGED as error:
        raise unreadable(str(path), error) from error


def open_encoded(data: bytes, name: str, channels: int = 3) -> Picture:
    """The same for a file's content."""
    try:
        return _open(BytesIO(data), name, channels)
    except _DAMAGED as error:
        raise unreadable(name, error) from error


class JpegPicture:
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
            return Pixels(self._decode_by_pillow()).crop_resized(box, size, interpolation)

    def _decode_by_pillow(self) -> Real[Tensor, "3 h w"]:
        """Which reads some damaged files, and has the word on the others."""
        return decode_image(self.data, self.name)


def _open(file: OpenFile, name: str, channels: int) -> Picture:
    if channels == 3 and is_jpeg(file.read(3)):
        file.seek(0)
        data = file.read()
        size = upright_colour_size(data)
        if size is not None:
            require_size(*size)
            return JpegPicture(data, name, size)
    file.seek(0)
    return Pixels(_decode(file, channels))


def _decode(file: OpenFile, channels: int) -> Real[Tensor, "{channels} h w"]:
    """Told apart by content: a name may say anything."""
    start = file.read(8)
    file.seek(0)
    if not start:
        raise ValueError("it is empty")
    if is_array(start):
        return read_array(file, channels)
    if is_tiff(start) and not _is_picture(file, channels):
        return read_tiff(file, channels)
    if channels not in (1, 3):
        raise ValueError(f"a picture of this format has 3 channels, not {channels}")
    with Image.open(file, formats=FORMATS) as image:
        require_size(image.height, image.width)
        picture = to_rgb(image)
    if channels == 1:
        picture = picture.convert("L")
    # A copy, for PyTorch wants memory that it may write to.
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def _is_picture(file: OpenFile, channels: int) -> bool:
    """Whether a TIFF file is one that Pillow reads, and its channels are asked for as a picture's.

    A single band of more than 8 bits is one where RGB is asked for.
    """
    if channels not in (1, 3):
        return False
    try:
        with Image.open(file, formats=("TIFF",)) as image:
            return channels == 3 or image.mode not in _WIDE_MODES
    except UnidentifiedImageError:
        return False
    finally:
        file.seek(0)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any Pillow mode to RGB.

    Alpha is composited on white; 16-bit and wider greys are scaled to 8 bits rather than clipped;
    CMYK, LAB, HSV, YCbCr and palettes go through Pillow; the EXIF rotation is applied.
    """
    image.load()
    # Not ImageOps.exif_transpose, which fails where it cannot write the other EXIF entries anew.
    upright = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if upright is not None:
        image = image.transpose(upright)
    if image.mode in _WIDE_MODES:
        return _narrow(image).convert("RGB")
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _narrow(image: Image.Image) -> Image.Image:
    """A grey of more than 8 bits to 8 bits.

    Integers are read as 16 bits (or 32, where a value needs them); floats as [0, 1], or as 8 or 16
    bits where values go beyond.
    """
    values = np.asarray(image).astype(np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    highest = values.max(initial=0)
    if image.mode == "F":
        full_scale = next((scale for scale in (1, 255, 65535) if highest <= scale), highest)
    else:
        full_scale = 65535 if highest <= 65535 else 2**31 - 1
    scaled = (values * (255 / full_scale)).round().clip(0, 255)
    return Image.fromarray(scaled.astype(np.uint8))
