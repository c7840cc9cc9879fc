"""Crops of JPEG files without decoding more of them than the crop's resolution needs.

libjpeg-turbo leaves out high frequencies, and most of the work, when it decodes at 1/2, 1/4 or 1/8 of
an image's size. What it would have to guess at (damage, CMYK, rotation by EXIF) is left to Pillow.
"""

from io import BytesIO

import numpy as np
import simplejpeg
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from simmim.data.decoding.lazy_image import Box, Interpolation, resize
from simmim.data.decoding.metadata import orientation
from simmim.utils.sizes import Pair

_SCALES = (8, 4, 2)
_RESAMPLING: dict[Interpolation, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


def is_jpeg(start: bytes) -> bool:
    """Whether a file that starts so is a JPEG."""
    return start.startswith(b"\xff\xd8\xff")


def upright_colour_size(data: bytes) -> Pair | None:
    """The size of an upright picture in colour; None for every other JPEG, and for damage."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    # Pillow warns of larger ones, or refuses them.
    is_huge = Image.MAX_IMAGE_PIXELS is not None and height * width > Image.MAX_IMAGE_PIXELS
    if colours not in ("YCbCr", "RGB") or is_huge or not _is_upright(data):
        return None
    return height, width


def is_plain(data: bytes) -> bool:
    """Whether any decoder may have a picture of which `upright_colour_size` told the size.

    Its colours are YCbCr, and its end is there.
    """
    return data.endswith(b"\xff\xd9") and simplejpeg.decode_jpeg_header(data)[2] == "YCbCr"


def _is_upright(data: bytes) -> bool:
    """Whether neither EXIF nor XMP, which Pillow reads too, turns the picture."""
    metadata = _before_scan(data)
    if b"Exif\0\0" not in metadata and b"tiff:Orientation" not in metadata:
        return True
    try:
        with Image.open(BytesIO(data)) as image:
            return orientation(image) == 1
    except (OSError, SyntaxError, ValueError):
        return False


def _before_scan(data: bytes) -> bytes:
    """The segments before the first scan; everything where they cannot be followed."""
    place = 2
    while data[place : place + 1] == b"\xff":
        if data[place + 1 : place + 2] == b"\xda":
            return data[:place]
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return data


def decode_whole(data: bytes) -> UInt8[Tensor, "3 h w"]:
    """All of a picture of which `upright_colour_size` told the size, as Pillow decodes it.

    Raises:
        ValueError: damage of any kind.
    """
    return _to_images(simplejpeg.decode_jpeg(data))[0].contiguous()


def find_scale(box: Box, size: Pair) -> int:
    """By how much decoding may divide an image's sides and still leave a crop its resolution."""
    for scale in _SCALES:
        if box.height >= scale * size[0] and box.width >= scale * size[1]:
            return scale
    return 1


def decode_crop(
    data: bytes, box: Box, size: Pair, interpolation: Interpolation = "bicubic"
) -> UInt8[Tensor, "3 h w"]:
    """A part of a picture of which `upright_colour_size` told the size, resized.

    Raises:
        ValueError: damage of any kind.
    """
    scale = find_scale(box, size)
    if scale == 1:
        return resize(_to_images(_cut(simplejpeg.decode_jpeg(data), *box)), size, interpolation)[0]
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    pixels = simplejpeg.decode_jpeg(
        data, min_height=-(-height // scale), min_width=-(-width // scale), min_factor=scale
    )
    # A crop begins and ends within a pixel of the smaller image, which PyTorch does not resize from.
    top, left = box.top // scale, box.left // scale
    bottom, right = (-(-end // scale) for end in (box.top + box.height, box.left + box.width))
    region = Image.fromarray(_cut(pixels, top, left, bottom - top, right - left))
    edges = (
        box.left / scale - left,
        box.top / scale - top,
        (box.left + box.width) / scale - left,
        (box.top + box.height) / scale - top,
    )
    resized = region.resize((size[1], size[0]), _RESAMPLING[interpolation], box=edges)
    return _to_images(np.array(resized))[0]


def _cut(
    pixels: UInt8[np.ndarray, "h w 3"], top: int, left: int, height: int, width: int
) -> UInt8[np.ndarray, "h2 w2 3"]:
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


def _to_images(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[Tensor, "1 3 h w"]:
    # PyTorch sees by the strides that channels stand last, and resizes twice as fast.
    return torch.from_numpy(pixels.reshape(1, *pixels.shape)).permute(0, 3, 1, 2)
