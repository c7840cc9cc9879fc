"""Files of known values, and what they show, computed from these by no reader."""

import io
from typing import Any, NamedTuple

import numpy as np
import tifffile
import torch

from simmim.data.decoding.decode import decode_image

HEIGHT, WIDTH = 20, 28
PALETTE = np.random.default_rng(7).integers(0, 256, (3, 256)).astype(np.uint16)


class Case(NamedTuple):
    """A file, what it shows in RGB, and by how much reading it may differ."""

    data: bytes
    truth: np.ndarray
    levels: float = 0


def samples(bits: int, count: int = 1) -> np.ndarray:
    """Values from the lowest to the highest of a depth, others in each sample."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    ramps = [x / (WIDTH - 1), y / (HEIGHT - 1), 1 - x / (WIDTH - 1), (x + y) / (WIDTH + HEIGHT - 2)]
    shades = np.stack([ramps[number % 4] for number in range(count)], -1)
    dtype = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    return (shades * (2**bits - 1)).round().astype(dtype)


def eight(values: np.ndarray, bits: int) -> np.ndarray:
    """Shares of a depth's highest value, in 255 levels."""
    return values.astype(float) * 255 / (2**bits - 1)


def on_white(shades: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Straight alpha, of 255 levels, on white."""
    share = opacity[..., None] / 255
    return shades * share + 255 * (1 - share)


def grey(shades: np.ndarray) -> np.ndarray:
    return np.repeat(shades.reshape(HEIGHT, WIDTH, 1), 3, -1)


def tiff(values: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    if values.ndim == 3 and options.get("planarconfig") == "separate":
        values = np.moveaxis(values, -1, 0)
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def orient(orientation: int) -> dict[str, Any]:
    return {"extratags": [(274, "H", 1, orientation, False)]}


def check(case: Case) -> None:
    image = decode_image(case.data, "a")
    assert image.dtype == torch.uint8
    assert image.shape == (3, *case.truth.shape[:2])
    difference = np.abs(image.permute(1, 2, 0).numpy().astype(float) - case.truth)
    assert difference.max() <= case.levels
