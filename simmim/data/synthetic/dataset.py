"""The ``demo`` data: pictures that simmim draws itself, with no file and no network.

A picture shows a textured ground, whose texture is its class, with objects on it. Colours, scale,
tilt, light and clutter are random and independent of the class. Sample ``i`` of a split depends
only on the seed, the name of the split and ``i``; the same arguments give the same bytes on the
same machine and NumPy release.

A scene is first composed in relative units and then drawn at the requested size: the origin is the
centre of the picture, x points to the right, y upwards, and the shorter side runs from -1 to 1.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.utils.data import Dataset

from simmim.data.sources.label_table import Table
from simmim.data.synthetic.mosaics import MOSAIC_CLASSES, render_mosaic
from simmim.data.synthetic.rng import create_generator, draw_label
from simmim.data.synthetic.shapes import SHAPE_REACH, SHAPES
from simmim.data.synthetic.textures import TEXTURES, Plane, coverage, ramp
from simmim.utils.errors import UserError

Pictures = Literal["textures", "mosaics"]
DEMO_CLASSES: tuple[str, ...] = tuple(TEXTURES)
MIN_SIDE = 16

Row = Float[np.ndarray, "1 w"]
Column = Float[np.ndarray, "h 1"]
# Plain floats, as NumPy's own scalars are slow and would turn float32 planes into float64.
Vector = list[float]
Matrix = list[list[float]]


@dataclass(frozen=True)
class Surface:
    """A texture in two colours (RGB, 0 to 1).

    ``to_texture`` and then ``phase`` map a point of the picture to the texture's coordinates, in
    which one period is 1.
    """

    texture: str
    colours: Float[np.ndarray, "2 3"]
    to_texture: Matrix
    phase: Vector


@dataclass(frozen=True)
class Figure:
    """A shape with its surface.

    ``to_shape`` maps a point of the picture, relative to the figure's centre, to the plane of the
    shape; ``half_extent`` is half the width and height of a box around it. ``place`` (-1 to 1 in x
    and y) is the fraction of the way from the centre of the picture to ``margin`` before its
    borders, so that a scene spreads over a picture of any aspect ratio.
    """

    shape: str
    to_shape: Matrix
    half_extent: Vector
    place: Vector
    margin: Vector
    height: float
    surface: Surface


@dataclass(frozen=True)
class Scene:
    """What a picture shows, in relative units, whatever its size in pixels.

    Each figure's shadow falls along ``shadow``, in proportion to its height above the ground, and
    takes away the fraction ``shading`` of the light. ``dimming`` is how fast the light fades along
    ``light_slope`` and away from ``light_centre``.
    """

    ground: Surface
    figures: tuple[Figure, ...]
    shadow: Vector
    shading: float
    light_slope: Vector
    light_centre: Vector
    dimming: float


@dataclass(frozen=True)
class Kind:
    """What figures of one kind have in common: ranges to draw their properties from."""

    sizes: tuple[float, float]
    tilt: float
    kept_whole: bool


BAR = Kind(sizes=(0.5, 1.6), tilt=math.pi, kept_whole=False)
SMALL = Kind(sizes=(0.1, 0.2), tilt=math.pi, kept_whole=False)
# The tilt stays below that at which a square stands on its corner or an arrow lies down.
LARGE = Kind(sizes=(0.2, 0.4), tilt=0.6, kept_whole=True)
# About two periods are visible, each several patches wide: enough to fill in masked patches.
GROUND_PERIODS, GROUND_TILT = (0.75, 1.1), 0.5
FIGURE_PERIODS = (0.26, 0.44)
SURFACES = TEXTURES | {"ramp": ramp}
THINGS = [name for name in SHAPES if name != "bar"]
# Positions of red, green and blue on the wheel of hues.
WHEEL = np.array([0, 1 / 3, 2 / 3], np.float32)


def render(
    seed: int, split: str, index: int, image_size: tuple[int, int], detail: float = 1.0
) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
    """Draw sample ``index`` of a split at ``image_size`` (height, width), with its label.

    The label is an index in `DEMO_CLASSES`; each block of as many samples as there are classes
    holds every class once. The seed and the index are 0 or more. The ground's texture is
    ``detail`` times finer.
    """
    label = draw_label(seed, split, index, len(DEMO_CLASSES))
    return _draw(compose(seed, split, index, detail), image_size), label


def compose(seed: int, split: str, index: int, detail: float = 1.0) -> Scene:
    """What sample ``index`` of a split shows (`render`)."""
    texture = DEMO_CLASSES[draw_label(seed, split, index, len(DEMO_CLASSES))]
    return _compose(create_generator(seed, split, "scenes", index), texture, detail)


def _compose(rng: np.random.Generator, texture: str, detail: float) -> Scene:
    bars, small = int(rng.integers(0, 2)), int(rng.integers(0, 3))
    kinds = [BAR] * bars + [SMALL] * small + [LARGE]
    count = len(kinds)
    drawn = rng.integers(len(THINGS), size=small + 1).tolist()
    shapes = ["bar"] * bars + [THINGS[i] for i in drawn]

    low, high = np.array([kind.sizes for kind in kinds]).T
    sizes = low + (high - low) * rng.random(count)
    tilts = rng.uniform(-1, 1, count) * [kind.tilt for kind in kinds]
    frames = sizes[:, None, None] * _rotations(tilts) @ _distortions(rng, count)
    half_extents = SHAPE_REACH * np.sqrt((frames * frames).sum(axis=2))
    margins = half_extents * [[kind.kept_whole] for kind in kinds]

    ground_colours = _colours(rng, 2)
    ground_colours[1] = _standing_out(_colours(rng, 1, 8), ground_colours[:1])[0]
    figure_colours = np.empty((count, 2, 3), np.float32)
    figure_colours[:, 0] = _standing_out(_colours(rng, count, 8), ground_colours)
    # The second colour is a shade of the first: a figure has to look like one object.
    black_or_white = rng.integers(2, size=(count, 1))
    share = rng.uniform(0.3, 0.6, (count, 1))
    figure_colours[:, 1] = figure_colours[:, 0] * (1 - share) + black_or_white * share

    figures = map(
        Figure,
        shapes,
        np.linalg.inv(frames).tolist(),
        half_extents.tolist(),
        rng.uniform(-1, 1, (count, 2)).tolist(),
        margins.tolist(),
        sizes.tolist(),
        _compose_surfaces(rng, "ramp", figure_colours, FIGURE_PERIODS, math.pi),
    )
    periods = (GROUND_PERIODS[0] / detail, GROUND_PERIODS[1] / detail)
    ground = _compose_surfaces(rng, texture, ground_colours[None], periods, GROUND_TILT)
    directions = _rotations(rng.uniform(-np.pi, np.pi, 2))[:, 0]
    return Scene(
        ground=ground[0],
        figures=tuple(figures),
        shadow=(rng.uniform(0.1, 0.25) * directions[0]).tolist(),
        shading=rng.uniform(0.2, 0.6),
        light_slope=directions[1].tolist(),
        light_centre=rng.uniform(-1, 1, 2).tolist(),
        dimming=rng.uniform(0, 0.4),
    )


def _compose_surfaces(
    rng: np.random.Generator,
    texture: str,
    colours: Float[np.ndarray, "n 2 3"],
    periods: tuple[float, float],
    tilt: float,
) -> list[Surface]:
    count = len(colours)
    turns = _rotations(rng.uniform(-tilt, tilt, count))
    to_texture = (turns / rng.uniform(*periods, (count, 1, 1))).tolist()
    phases = rng.uniform(-0.5, 0.5, (count, 2)).tolist()
    return list(map(Surface, [texture] * count, colours, to_texture, phases))


def _colours(rng: np.random.Generator, *shape: int) -> Float[np.ndarray, "*shape 3"]:
    """Random colours: any hue, from pale to saturated, seldom dark."""
    hue, saturation, brightness = rng.random((3, *shape, 1), np.float32)
    wheel = 0.5 + 0.5 * np.cos(2 * np.pi * (hue + WHEEL))
    return (0.3 + 0.7 * brightness) * (1 - (0.2 + 0.7 * saturation) * wheel)


def _standing_out(
    candidates: Float[np.ndarray, "n candidates 3"], ground: Float[np.ndarray, "colours 3"]
) -> Float[np.ndarray, "n 3"]:
    """The colour of each row that differs most from all of the ground's."""
    difference = np.abs(candidates[:, :, None] - ground).sum(axis=-1).min(axis=-1)
    return candidates[range(len(candidates)), difference.argmax(axis=1)]


def _rotations(angles: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 2 2"]:
    cosine, sine = np.cos(angles), np.sin(angles)
    return np.array([[cosine, -sine], [sine, cosine]]).transpose(2, 0, 1)


def _distortions(rng: np.random.Generator, count: int) -> Float[np.ndarray, "n 2 2"]:
    """Random stretch, shear and mirroring, which preserve areas."""
    stretch, shear = rng.uniform(0.85, 1.18, count), rng.uniform(-0.2, 0.2, count)
    mirror = 2 * rng.integers(2, size=count) - 1
    rows = [[mirror * stretch, shear], [np.zeros(count), 1 / stretch]]
    return np.array(rows).transpose(2, 0, 1)


def _draw(scene: Scene, image_size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    height, width = image_size
    pixel = 2 / min(height, width)
    reach_x, reach_y = width * pixel / 2, height * pixel / 2
    x = ((np.arange(width, dtype=np.float32) + 0.5) * pixel - reach_x)[None, :]
    y = (reach_y - (np.arange(height, dtype=np.float32) + 0.5) * pixel)[:, None]

    # Channels come first until the end: NumPy is slow on an inner axis of length 3.
    canvas = _paint(scene.ground, x, y, pixel)
    for figure in scene.figures:
        middle_x = figure.place[0] * max(reach_x - figure.margin[0], 0)
        middle_y = figure.place[1] * max(reach_y - figure.margin[1], 0)
        fall_x, fall_y = (figure.height * component for component in scene.shadow)
        # The farther a shadow falls, the softer it is.
        softness = pixel + math.hypot(fall_x, fall_y)
        from_x, from_y = x - (middle_x + fall_x), y - (middle_y + fall_y)
        rows, columns, share = _stamp(figure, from_x, from_y, softness)
        canvas[:, rows, columns] *= 1 - scene.shading * share
        from_x, from_y = x - middle_x, y - middle_y
        rows, columns, share = _stamp(figure, from_x, from_y, pixel)
        below = canvas[:, rows, columns]
        below += share * (_paint(figure.surface, from_x[:, columns], from_y[rows], pixel) - below)
    canvas *= _light(scene, x / reach_x, y / reach_y)
    canvas *= 255
    canvas += 0.5
    return np.ascontiguousarray(canvas.astype(np.uint8).transpose(1, 2, 0))


def _stamp(
    figure: Figure, x: Row, y: Column, blur: float
) -> tuple[slice, slice, Float[np.ndarray, "rows columns"]]:
    """The rows and columns that a figure touches, and the fraction of each pixel that it covers.

    ``x`` and ``y`` are relative to the centre of the figure; its outline is ``blur`` wide.
    """
    columns = _within(x[0], figure.half_extent[0] + blur)
    rows = _within(-y[:, 0], figure.half_extent[1] + blur)
    x, y = x[:, columns], y[rows]
    (a, b), (c, d) = figure.to_shape
    distance = SHAPES[figure.shape](a * x + b * y, c * x + d * y)
    return rows, columns, coverage(distance, blur * math.sqrt(abs(a * d - b * c)))


def _within(rising: Float[np.ndarray, " n"], reach: float) -> slice:
    """The slice of increasing values that are between ``-reach`` and ``reach``."""
    start, stop = rising.searchsorted((-reach, reach)).tolist()
    return slice(start, stop)


def _paint(surface: Surface, x: Row, y: Column, pixel: float) -> Float[np.ndarray, "3 h w"]:
    (a, b), (c, d) = surface.to_texture
    u, v = a * x + (b * y + surface.phase[0]), c * x + (d * y + surface.phase[1])
    share = SURFACES[surface.texture](u, v, pixel * math.hypot(a, b))
    first, second = surface.colours[:, :, None, None]
    return first + share * (second - first)


def _light(scene: Scene, x: Row, y: Column) -> Plane:
    """The light (0 to 1) at points given as fractions of the way from centre to borders."""
    along = (scene.light_slope[0] * x + scene.light_slope[1] * y) / math.sqrt(2)
    away = (x - scene.light_centre[0]) ** 2 + (y - scene.light_centre[1]) ** 2
    return 1 / (1 + scene.dimming * (1 + along + away / 2))


def describe_scenes(seed: int, split: str, indices: range, detail: float) -> Table:
    """A row of what each of these pictures shows (`DemoImages.label_table`)."""
    scenes = [compose(seed, split, index, detail) for index in indices]
    grounds = [scene.ground.colours.mean(axis=0) for scene in scenes]
    columns = {
        "objects": [str(len(scene.figures)) for scene in scenes],
        "size": [f"{max(figure.height for figure in scene.figures):.4f}" for scene in scenes],
    }
    for channel, colour in enumerate(("red", "green", "blue")):
        columns[f"ground_{colour}"] = [f"{ground[channel]:.4f}" for ground in grounds]
        columns[f"mostly_{colour}"] = [str(int(ground.argmax() == channel)) for ground in grounds]
    for shape in SHAPES:
        columns[shape] = [
            str(int(any(figure.shape == shape for figure in scene.figures))) for scene in scenes
        ]
    return Table(columns, [f"demo/{split}/{index}" for index in indices], "the demo's table")


class DemoImages(Dataset[tuple[torch.Tensor, int]]):
    """The first ``size`` demo pictures of a split, at ``image_size`` (height, width) in pixels.

    ``pictures`` are ``textures``, as here, or ``mosaics``, as in `mosaics.py`. At ``detail`` 1,
    pictures of all sizes show the same number of periods of their texture, or of tiles; at
    ``detail`` 3, three times as many, as a photograph of three times the size shows more.

    Raises `UserError` (a ValueError) for unknown pictures, and for a size, an image size, a seed or a
    detail that is too small.
    """

    def __init__(
        self,
        *,
        split: str,
        size: int,
        image_size: tuple[int, int],
        seed: int = 0,
        detail: float = 1.0,
        pictures: Pictures = "textures",
    ) -> None:
        if pictures not in get_args(Pictures):
            raise UserError(
                f"data.pictures={pictures} is unknown; use {' or '.join(get_args(Pictures))}"
            )
        if size < 1:
            raise UserError(
                f"demo {split}_size is {size}; it must be at least 1: ask for one picture or more"
            )
        if min(image_size) < MIN_SIDE:
            raise UserError(
                f"demo image_size (height, width) is {tuple(image_size)}; both must be at least "
                f"{MIN_SIDE} px to show the textures: choose a larger image_size"
            )
        if seed < 0:
            raise UserError(f"demo seed is {seed}; it must be at least 0: choose another seed")
        if detail <= 0:
            raise UserError(
                f"demo detail is {detail}; it must be more than 0: 1 is the usual, 3 shows textures "
                "three times as fine"
            )
        self.classes, self._render = {
            "textures": (DEMO_CLASSES, render),
            "mosaics": (MOSAIC_CLASSES, render_mosaic),
        }[pictures]
        self._split = split
        self._size = size
        self._image_size = image_size
        self._seed = seed
        self._detail = detail

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.load(index)

    def present_classes(self) -> tuple[str, ...]:
        """The classes that occur in these pictures."""
        labels = {self.load(index)[1] for index in range(min(len(self), 2 * len(self.classes)))}
        return tuple(self.classes[label] for label in sorted(labels))

    def load(self, index: int) -> tuple[UInt8[torch.Tensor, "3 h w"], int]:
        """The picture and its label, an index in `classes`; IndexError if there is none."""
        self._check(index)
        picture, label = self._render(
            self._seed, self._split, index, self._image_size, self._detail
        )
        return torch.from_numpy(picture).permute(2, 0, 1).contiguous(), label

    def label_table(self) -> Table:
        """What the pictures show, for `task=regression` and `task=multilabel`.

        Columns are the number of `objects`, the `size` of the largest (its share of half the
        picture's shorter side), the mean red, green and blue of the ground (0 to 1) and which of
        them is the largest, and for each shape whether the picture has it. Raises `UserError` for
        mosaics, which have no objects.
        """
        if self._render is not render:
            raise UserError("data.pictures=mosaics shows no objects; use data.pictures=textures")
        return describe_scenes(self._seed, self._split, range(self._size), self._detail)

    def identifier(self, index: int) -> str:
        """A name for a sample, such as ``demo/train/17``; IndexError if there is none."""
        self._check(index)
        return f"demo/{self._split}/{index}"

    def _check(self, index: int) -> None:
        if not 0 <= index < self._size:
            raise IndexError(
                f"demo index is {index}; the {self._split} split holds {self._size} pictures: "
                f"choose an index from 0 to {self._size - 1}"
            )
