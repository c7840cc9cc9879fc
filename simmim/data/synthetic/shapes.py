"""The outlines of the demo pictures, as signed distance functions.

Each function takes the coordinates ``x`` (to the right) and ``y`` (upwards) of a grid of points
and returns about how far each is from the outline: negative inside, zero on it, positive
outside. Beyond a corner the value may be less than the distance; the outline itself is exact.
Every shape lies within `SHAPE_REACH` of the origin.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Points = Float[np.ndarray, "#h #w"]
Distances = Float[np.ndarray, "h w"]
Outline = Callable[[Points, Points], Distances]

SHAPE_REACH = 1.1


def length(x: Points, y: Points) -> Distances:
    """The length of the vectors (x, y); several times faster than `np.hypot`."""
    return np.sqrt(x * x + y * y)


def _disc(x: Points, y: Points) -> Distances:
    return length(x, y) - 0.9


def _ring(x: Points, y: Points) -> Distances:
    return np.abs(length(x, y) - 0.72) - 0.22


def _crescent(x: Points, y: Points) -> Distances:
    return np.maximum(length(x + 0.15, y) - 0.95, 0.75 - length(x - 0.3, y))


def _heart(x: Points, y: Points) -> Distances:
    size = 1.6
    x, y = np.abs(x) / size, y / size + 0.53
    along = np.maximum(x + y, 0) / 2
    to_lobe = length(x - 0.25, y - 0.75) - 0.125**0.5
    to_notch_or_side = np.minimum(length(x, y - 1), length(x - along, y - along))
    return size * np.where(x + y > 1, to_lobe, np.copysign(to_notch_or_side, x - y))


def _spiral(x: Points, y: Points) -> Distances:
    pitch, half_width = 0.43, 0.13
    turn = np.arctan2(y, x) / (2 * np.pi)
    turn -= np.floor(turn)
    radius = length(x, y)
    arm = np.minimum(np.rint(radius / pitch - turn), 1)
    to_centre_line = np.abs(radius - pitch * (np.maximum(arm, 0) + turn))
    # The second arm stops at a straight cut on the x axis; a round cap hides it.
    return np.minimum(to_centre_line, length(x - 2 * pitch, y)) - half_width


def _beyond(
    x: Points, y: Points, lines: Float[np.ndarray, "3 n 1 1"]
) -> Float[np.ndarray, "n h w"]:
    """How far each point lies beyond each line, given by its unit normal and its offset."""
    normal_x, normal_y, offset = lines
    return (normal_x * x - offset) + normal_y * y


def _convex(*corners: tuple[float, float]) -> Outline:
    """The convex polygon with these corners, clockwise."""
    start = np.array(corners).T
    edge = np.roll(start, -1, axis=1) - start
    normal = np.array([-edge[1], edge[0]]) / np.hypot(*edge)
    lines = np.array([*normal, (normal * start).sum(axis=0)], np.float32)[:, :, None, None]

    def distance(x: Points, y: Points) -> Distances:
        return _beyond(x, y, lines).max(axis=0)

    return distance


def _star() -> Outline:
    """The five-pointed star: the points behind at least four of five lines."""
    turns = 2 * np.pi * (np.arange(5) / 5 + 0.1)
    lines = np.array([np.sin(turns), np.cos(turns), np.full(5, 0.34)], np.float32)[..., None, None]

    def distance(x: Points, y: Points) -> Distances:
        farthest, *rest = _beyond(x, y, lines)
        second = np.full_like(farthest, -np.inf)
        for beyond in rest:
            second = np.maximum(second, np.minimum(farthest, beyond))
            farthest = np.maximum(farthest, beyond)
        return second

    return distance


def _rectangle(left: float, right: float, bottom: float, top: float) -> Outline:
    return _convex((left, top), (right, top), (right, bottom), (left, bottom))


def _union(first: Outline, second: Outline) -> Outline:
    def distance(x: Points, y: Points) -> Distances:
        return np.minimum(first(x, y), second(x, y))

    return distance


#: The outlines of the objects in a demo picture.
SHAPES: dict[str, Outline] = {
    "arrow": _union(
        _convex((0.0, 1.0), (0.8, 0.0), (-0.8, 0.0)),
        _rectangle(-0.27, 0.27, -1.0, 0.1),
    ),
    "bar": _rectangle(-1.0, 1.0, -0.07, 0.07),
    "bolt": _union(
        _convex((-0.09, 0.95), (0.54, 0.95), (-0.02, -0.18), (-0.54, -0.18)),
        _convex((0.05, 0.22), (0.6, 0.22), (-0.36, -0.95)),
    ),
    "crescent": _crescent,
    "cross": _union(
        _rectangle(-0.95, 0.95, -0.3, 0.3),
        _rectangle(-0.3, 0.3, -0.95, 0.95),
    ),
    "disc": _disc,
    "heart": _heart,
    "hourglass": _union(
        _convex((-0.75, 0.8), (0.75, 0.8), (0.0, -0.16)),
        _convex((0.75, -0.8), (-0.75, -0.8), (0.0, 0.16)),
    ),
    "ring": _ring,
    "spiral": _spiral,
    "square": _rectangle(-0.77, 0.77, -0.77, 0.77),
    "star": _star(),
    "triangle": _convex((0.0, 1.05), (0.91, -0.53), (-0.91, -0.53)),
}
