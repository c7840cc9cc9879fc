"""Converts images of any mode to RGB, and values of any bit depth to 8 bits.

Alpha is composited on white, in whatever form a file declares it. The highest value of a bit depth
is white; colour profiles and gamma are not applied.
"""

import numpy as np
from jaxtyping import Real, Shaped, UInt8
from PIL import Image

# Pillow's modes with one band of more than 8 bits.
_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")

# How to turn an image's pixels upright, by its EXIF orientation.
_UPRIGHT = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, 1),
}


def upright(pixels: Shaped[np.ndarray, "h w ..."], orientation: int) -> Shaped[np.ndarray, "..."]:
    """A view, turned upright by its EXIF orientation; unchanged for an invalid orientation."""
    turn = _UPRIGHT.get(orientation)
    return pixels if turn is None else turn(pixels)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any Pillow mode to RGB, without applying the EXIF orientation.

    Alpha is composited on white; 16-bit and wider greys are scaled to 8 bits rather than clipped;
    CMYK, LAB, HSV, YCbCr and palettes are converted by Pillow.
    """
    image.load()
    if image.mode in _WIDE_MODES:
        return _wide_to_rgb(image)
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _wide_to_rgb(image: Image.Image) -> Image.Image:
    """Converts greys of more than 8 bits; one value of a 16-bit PNG may be transparent."""
    values = np.asarray(image)
    shades = to_8_bits(values, full_scale(values, bits=32 if image.mode in ("I", "F") else 16))
    transparent = image.info.get("transparency")
    if transparent is not None:
        shades = np.where(values == transparent, np.uint8(255), shades)
    return Image.fromarray(shades).convert("RGB")


def full_scale(values: Real[np.ndarray, "..."], bits: int) -> float:
    """The value that counts as white in greys of this number of `bits`.

    For integers of up to 16 bits it is the highest value, of signed ones the highest positive
    value. Wider integers are read as 16 bits, or as 32 (or more) if a value needs them. Floats are
    read as [0, 1], or as 8 or 16 bits if values are larger.
    """
    is_signed = values.dtype.kind == "i"
    top = float(2 ** (bits - is_signed) - 1)
    if values.dtype.kind != "f":
        if bits <= 16:
            return top
        return 65535.0 if values.max(initial=0) <= 65535 else top
    highest = float(values.max(initial=0, where=np.isfinite(values)))
    return next((scale for scale in (1.0, 255.0, 65535.0) if highest <= scale), highest)


def to_8_bits(values: Real[np.ndarray, "..."], white: float) -> UInt8[np.ndarray, "..."]:
    """Values scaled from [0, `white`] to [0, 255]; values below zero or not finite become 0."""
    if values.dtype == np.uint8 and white == 255:
        return values
    if white == 65535 and values.dtype == np.uint16:
        # The same as below in integers: divided by 257 and rounded.
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    return (finite * (255 / white)).round().clip(0, 255).astype(np.uint8)
