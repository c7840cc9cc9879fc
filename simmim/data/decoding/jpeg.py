"""Decodes crops of JPEG files at no higher resolution than the crop needs.

libjpeg-turbo leaves out high frequencies, and most of the work, when it decodes at 1/2, 1/4 or 1/8 of
an image's size. Special cases (damage, CMYK, rotation by EXIF) are left to Pillow.
"""

from io import BytesIO

import numpy as np
import simplejpeg
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from simmim.data.decoding.lazy_image import Box
from simmim.data.decoding.metadata import orientation
from simmim.data.decoding.resize import Interpolation, resize
from simmim.utils.sizes import Pair

_SCALES = (8, 4, 2)
_RESAMPLING: dict[Interpolation, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


def is_jpeg(start: bytes) -> bool:
    """Whether a file with this start is a JPEG."""
    return start.startswith(b"\xff\xd8\xff")


def upright_colour_size(data: bytes) -> Pair | None:
    """The (height, width) of an upright colour JPEG; None for any other or damaged one."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    # Pillow warns about larger ones, or refuses them.
    is_huge = Image.MAX_IMAGE_PIXELS is not None and height * width > Image.MAX_IMAGE_PIXELS
    if colours not in ("YCbCr", "RGB") or is_huge or not _is_upright(data):
        return None
    return height, width


def is_plain(data: bytes) -> bool:
    """Whether any decoder can decode an image that `upright_colour_size` accepted.

    Its colours are YCbCr, and the file is not cut off.
    """
    return data.endswith(b"\xff\xd9") and simplejpeg.decode_jpeg_header(data)[2] == "YCbCr"


def _is_upright(data: bytes) -> bool:
    """Whether neither EXIF nor XMP, which Pillow also reads, rotates or mirrors the image."""
    metadata = _before_scan(data)
    if b"Exif\0\0" not in metadata and b"tiff:Orientation" not in metadata:
        return True
    try:
        with Image.open(BytesIO(data)) as image:
            return orientation(image) == 1
    except (OSError, SyntaxError, ValueError):
        return False


def _before_scan(data: bytes) -> bytes:
    """The segments before the first scan; all data if they cannot be parsed."""
    place = 2
    while data[place : place + 1] == b"\xff":
        if data[place + 1 : place + 2] == b"\xda":
            return data[:place]
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return data


def decode_whole(data: bytes) -> UInt8[Tensor, "3 h w"]:
    """The whole of an image that `upright_colour_size` accepted, as Pillow decodes it.

    Raises:
        ValueError: damage of any kind.
    """
    return _to_images(simplejpeg.decode_jpeg(data))[0].contiguous()


def find_scale(box: Box, size: Pair) -> int:
    """The factor by which decoding may shrink an image so that the crop keeps its resolution."""
    for scale in _SCALES:
        if box.height >= scale * size[0] and box.width >= scale * size[1]:
            return scale
    return 1


def decode_crop(
    data: bytes, box: Box, size: Pair, interpolation: Interpolation = "bicubic"
) -> UInt8[Tensor, "3 h w"]:
    """A crop of an image that `upright_colour_size` accepted, resized.

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
    # The crop's edges are inside pixels of the smaller image, from which PyTorch cannot resize.
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
    # A channels-last view, which PyTorch recognises by its strides and resizes twice as fast.
    return torch.from_numpy(pixels.reshape(1, *pixels.shape)).permute(0, 3, 1, 2)
