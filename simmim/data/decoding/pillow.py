"""Reads images with Pillow: every format but arrays, and TIFF files that it reads correctly."""

import re
import struct
import zlib
from io import BytesIO

import numpy as np
import torch
from jaxtyping import UInt8, UInt16
from PIL import Image, Jpeg2KImagePlugin, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from simmim.data.decoding.colours import to_8_bits, to_rgb, upright
from simmim.data.decoding.metadata import orientation, without_metadata
from simmim.data.decoding.npy import OpenFile
from simmim.data.decoding.size_limits import require_size

# Pillow knows more formats, some of which run other programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "DIB", "PPM", "JPEG2000", "AVIF")

# Errors that readers raise for a damaged file; Pillow's also fail on fields of unexpected types.
DAMAGED = (
    *(OSError, EOFError, SyntaxError, ValueError, MemoryError, Image.DecompressionBombError),
    *(TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, AssertionError),
    *(struct.error, zlib.error, ImportError),
)

# Raw modes that read the lower bytes of 16-bit samples, of which Pillow keeps only the upper ones.
_LOWER_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}


def read_picture(file: OpenFile, channels: int) -> UInt8[Tensor, "{channels} h w"]:
    """The first frame of an image, upright, in RGB or, for one channel, in grey.

    If it cannot be read, it is tried again without its metadata.
    """
    try:
        return _read(file, channels)
    except DAMAGED:
        file.seek(0)
        bare = without_metadata(file.read())
        if bare is None:
            raise
    try:
        return _read(BytesIO(bare), channels)
    except UnidentifiedImageError:
        if bits := _deep_jpeg(bare):
            raise ValueError(f"a JPEG of {bits} bits a sample is not read") from None
        raise


def _deep_jpeg(data: bytes) -> int | None:
    """Bits per sample of a JPEG if they are not 8, which cannot be read; else None."""
    frame = re.search(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]..(.)", data, re.DOTALL)
    if not data.startswith(b"\xff\xd8") or frame is None or frame[1][0] == 8:
        return None
    return frame[1][0]


def _read(file: OpenFile, channels: int) -> UInt8[Tensor, "{channels} h w"]:
    with Image.open(file, formats=FORMATS) as image:
        require_size(image.height, image.width)
        if isinstance(image, PngImagePlugin.PngImageFile):
            picture = _read_png(image, file)
        elif isinstance(image, Jpeg2KImagePlugin.Jpeg2KImageFile):
            picture = _read_jpeg2000(image, file)
        else:
            picture = to_rgb(image)
        if channels == 1:
            picture = picture.convert("L")
        pixels = upright(np.asarray(picture), orientation(image))
    # A copy, because PyTorch needs writable memory.
    if channels == 1:
        return torch.from_numpy(pixels.copy())[None]
    return torch.from_numpy(np.array(pixels, order="C")).permute(2, 0, 1).contiguous()


def _read_png(image: PngImagePlugin.PngImageFile, file: OpenFile) -> Image.Image:
    """A PNG in RGB; adds what Pillow leaves out: lower bytes, and the scale of transparent values."""
    layout = image.tile[0].args if image.tile else ""
    if image.mode == "P" and image.palette is None:
        raise ValueError("it has no palette, and its pixels are numbers of one")
    if layout in ("L;2", "L;4") and "transparency" in image.info:
        # The transparent value has 2 or 4 bits, while Pillow scales the image to 8 bits.
        highest = 2 ** int(layout[2:]) - 1
        image.info["transparency"] = (image.info["transparency"] & highest) * (255 // highest)
    if layout == "LA;16B":
        # Read as four 8-bit samples: the upper and lower bytes of grey and alpha.
        image.tile = [image.tile[0]._replace(args="RGBA")]
        halves = np.asarray(image)
        return to_rgb(_from_16_bits(halves[..., ::2], halves[..., 1::2]))
    if layout in _LOWER_BYTES:
        upper = np.asarray(image)
        file.seek(0)
        with Image.open(file, formats=("PNG",)) as again:
            again.tile = [again.tile[0]._replace(args=_LOWER_BYTES[layout])]
            return to_rgb(_from_16_bits(upper, np.asarray(again), image.info.get("transparency")))
    return to_rgb(image)


def _from_16_bits(
    upper: UInt8[np.ndarray, "h w c"],
    lower: UInt8[np.ndarray, "h w c"],
    transparent: tuple[int, ...] | None = None,
) -> Image.Image:
    """An 8-bit image from 16-bit samples; the transparent colour becomes white."""
    values: UInt16[np.ndarray, "h w c"] = upper.astype(np.uint16) << 8 | lower
    shades = to_8_bits(values, 65535)
    if transparent is not None:
        shades[(values == transparent).all(-1)] = 255
    return Image.fromarray(shades)


def _read_jpeg2000(image: Jpeg2KImagePlugin.Jpeg2KImageFile, file: OpenFile) -> Image.Image:
    """A JPEG 2000 in RGB; of more than 8 bits by imagecodecs, as Pillow turns white into black."""
    file.seek(0)
    data = file.read()
    # The codestream's first markers, then SIZ's entry for each component.
    place = data.find(b"\xff\x4f\xff\x51")
    (count,) = struct.unpack_from(">H", data, place + 40)
    components = set(data[place + 42 : place + 42 + 3 * count : 3])
    bits = max(component & 0x7F for component in components) + 1
    if bits <= 8 or count == 1:
        return to_rgb(image)
    if components != {bits - 1} or image.mode not in ("LA", "RGB", "RGBA"):
        raise ValueError(f"a JPEG 2000 of {bits} bits and mode {image.mode} is not read")
    try:
        from imagecodecs import jpeg2k_decode
    except ImportError:
        raise ImportError(
            f'JPEG 2000 in colours of {bits} bits needs imagecodecs; pip install "simmim[tiff]"'
        ) from None
    return to_rgb(Image.fromarray(to_8_bits(jpeg2k_decode(data), 2**bits - 1)))
