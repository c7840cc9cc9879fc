"""Images embedded in the page, downscaled, as data URIs."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from simmim.analysis.position_bias import BlockAttention
from simmim.reconstruct.contact_sheet import TILES
from simmim.report.charts import spread

_TILE = 192  # maximum side in pixels
_SHEET = 1200
_HEADS = 8
_HEAD_GAP = 1


class HeldOutImage(NamedTuple):
    """A held-out image, its masked version, and its reconstructions by step."""

    image: str
    masked: str
    reconstructions: list[str]


class Gallery(NamedTuple):
    """Reconstructions over training; `steps` are those of each image's reconstructions.

    Contact sheets without metadata on their tiles are kept whole in `sheets`, one per step.
    """

    steps: list[int]
    images: list[HeldOutImage]
    sheets: list[str]


class HeatMap(NamedTuple):
    """A block's position bias, one map per head; `low` is the darkest, `high` the brightest value."""

    name: str
    picture: str
    heads: int
    shown: int
    low: float
    high: float
    rows: int
    columns: int
    scales: str


def read_gallery(sheets: Mapping[int, Path], *, most_steps: int, most_bytes: int) -> Gallery:
    """Reads reconstructions of at most `most_steps` evenly spaced steps, of about `most_bytes`."""
    steps = spread(sorted(sheets), most_steps)
    while True:
        gallery = _read_gallery({step: sheets[step] for step in steps})
        size = sum(map(len, gallery.sheets)) + sum(
            len(uri) for image in gallery.images for uri in (*image[:2], *image.reconstructions)
        )
        if size <= most_bytes or len(steps) <= 1:
            return gallery
        steps = spread(steps, max(1, min(len(steps) - 1, len(steps) * most_bytes // size)))


def _read_gallery(sheets: Mapping[int, Path]) -> Gallery:
    images: list[HeldOutImage] = []
    whole: list[str] = []
    steps = []
    for step, path in sheets.items():
        try:
            sheet = Image.open(path)
            sheet.load()
        except OSError:  # being written right now, or damaged
            continue
        steps.append(step)
        tiles = json.loads(sheet.info.get(TILES, "[]"))
        if not tiles:
            whole.append(as_uri(sheet, _SHEET))
            continue
        uris = [[as_uri(sheet.crop(box), _TILE) for box in row[-1:]] for row in tiles]
        if len(images) != len(tiles):  # the first sheet, or the number of images has changed
            pairs = [[as_uri(sheet.crop(box), _TILE) for box in row[:2]] for row in tiles]
            before = len(steps) - 1
            images = [HeldOutImage(image, masked, [""] * before) for image, masked in pairs]
        for image, (uri,) in zip(images, uris, strict=True):
            image.reconstructions.append(uri)
    return Gallery(steps, images, whole)


def as_uri(picture: Image.Image, side: int) -> str:
    """The picture as a WebP data URI, with no side longer than `side` pixels."""
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=82)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def heat_map(block: BlockAttention) -> HeatMap:
    """The block's bias by offset, for at most eight evenly spaced heads, on a common colour scale."""
    heads, rows, columns = block.bias.shape
    chosen = spread(range(heads), _HEADS)
    bias = block.bias[chosen]
    low, high = float(bias.min()), float(bias.max())
    scales = ""
    if block.scale is not None:
        least, most = block.scale.aminmax()
        scales = f"{block.scale.mean():.1f} ({least:.1f} to {most:.1f})"
    return HeatMap(
        block.name,
        _as_png((bias - low) / max(high - low, 1e-12)),
        heads,
        len(chosen),
        low,
        high,
        rows,
        columns,
        scales,
    )


def _as_png(maps: Float[Tensor, "heads rows columns"]) -> str:
    """The maps side by side, dark to bright, separated by a transparent line."""
    from matplotlib import colormaps

    heads, rows, columns = maps.shape
    colours = (colormaps["viridis"](maps.numpy())[..., :3] * 255).round().astype("uint8")
    strip = Image.new("RGBA", (heads * (columns + _HEAD_GAP) - _HEAD_GAP, rows))
    for head in range(heads):
        strip.paste(Image.fromarray(colours[head]), (head * (columns + _HEAD_GAP), 0))
    file = io.BytesIO()
    strip.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
