"""Image files to RGB: every Pillow mode, each converted so that the picture looks as it should."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image
from torch import Tensor

from simmim.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"})

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


def read_image(path: Path) -> UInt8[Tensor, "3 h w"]:
    """Reads a file (its first frame) as RGB, upright by its EXIF orientation.

    Raises:
        UserError: the file cannot be read as an image; the message names it.
    """
    try:
        with Image.open(path) as image:
            rgb = to_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"cannot read image {path} ({str(error) or type(error).__name__}); remove or replace it"
        ) from error
    # A copy, for PyTorch wants memory that it may write to.
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


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
