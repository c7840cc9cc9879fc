"""The textures of the demo pictures: how much of a second colour is visible at a point.

Each function takes coordinates ``u`` and ``v`` in periods and the width of a pixel in periods, and
returns the fraction of the second colour, 0 to 1; edges are as wide as a pixel.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from simmim.data.synthetic.shapes import length

Plane: TypeAlias = Float[np.ndarray, "h w"]
Texture: TypeAlias = Callable[[Plane, Plane, float], Plane]


def coverage(distance: Plane, blur: float) -> Plane:
    """The fraction of a pixel inside an outline that is ``blur`` wide, at this signed distance."""
    return np.minimum(np.maximum(0.5 - distance * (1 / blur), 0), 1)


def ramp(u: Plane, v: Plane, pixel: float) -> Plane:
    """A linear gradient from one colour to the other."""
    return np.minimum(np.maximum(0.5 + 0.3 * u, 0), 1)


def _from_middle(u: Plane) -> Plane:
    """Distance along an axis from the middle of the period, signed."""
    return u - np.rint(u)


def _band(u: Plane, half_width: float, pixel: float) -> Plane:
    return coverage(np.abs(_from_middle(u)) - half_width, pixel)


def _stripes(u: Plane, v: Plane, pixel: float) -> Plane:
    return _band(v, 0.25, pixel)


def _zigzag(u: Plane, v: Plane, pixel: float) -> Plane:
    return _band(v + 0.7 * np.abs(_from_middle(u)), 0.25, 1.2 * pixel)


def _waves(u: Plane, v: Plane, pixel: float) -> Plane:
    return _band(v + 0.3 * np.sin(1.4 * np.pi * u), 0.25, 1.3 * pixel)


def _checks(u: Plane, v: Plane, pixel: float) -> Plane:
    columns, rows = _band(u, 0.25, pixel), _band(v, 0.25, pixel)
    return columns + rows - 2 * columns * rows


def _grid(u: Plane, v: Plane, pixel: float) -> Plane:
    return np.maximum(_band(u, 0.12, pixel), _band(v, 0.12, pixel))


def _bricks(u: Plane, v: Plane, pixel: float) -> Plane:
    joint = _from_middle(u / 2 + np.floor(v) % 2 / 2)
    return np.maximum(_band(v, 0.1, pixel), coverage(2 * np.abs(joint) - 0.12, pixel))


def _dashes(u: Plane, v: Plane, pixel: float) -> Plane:
    along = np.abs(_from_middle(0.6 * u + np.rint(v) % 2 / 2)) / 0.6
    return coverage(np.maximum(along - 0.5, np.abs(_from_middle(v)) - 0.14), pixel)


def _dots(u: Plane, v: Plane, pixel: float) -> Plane:
    return coverage(length(_from_middle(u), _from_middle(v)) - 0.3, pixel)


def _rings(u: Plane, v: Plane, pixel: float) -> Plane:
    return coverage(np.abs(length(_from_middle(u), _from_middle(v)) - 0.3) - 0.1, pixel)


def _crosses(u: Plane, v: Plane, pixel: float) -> Plane:
    across, along = np.abs(_from_middle(u)), np.abs(_from_middle(v))
    longer, shorter = np.maximum(across, along), np.minimum(across, along)
    return coverage(np.maximum(longer - 0.36, shorter - 0.12), pixel)


def _triangles(u: Plane, v: Plane, pixel: float) -> Plane:
    return coverage(np.abs(_from_middle(u)) - (v - np.floor(v)) / 2, pixel)


def _scales(u: Plane, v: Plane, pixel: float) -> Plane:
    across = _from_middle(u - np.rint(v) % 2 / 2)
    return coverage(np.abs(length(across, _from_middle(v) + 0.25) - 0.45) - 0.1, pixel)


#: The textures of the demo pictures' classes, by the name of the class.
TEXTURES: dict[str, Texture] = {
    "bricks": _bricks,
    "checks": _checks,
    "crosses": _crosses,
    "dashes": _dashes,
    "dots": _dots,
    "grid": _grid,
    "rings": _rings,
    "scales": _scales,
    "stripes": _stripes,
    "triangles": _triangles,
    "waves": _waves,
    "zigzag": _zigzag,
}
