"""Contact sheets: images next to their masked version and their reconstruction."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from simmim.models.reconstruction import Reconstruction
from simmim.utils.files import written_beside

# Key of the PNG text with the positions of a sheet's tiles: for each image, in the order of the
# columns, `[left, top, right, bottom]` in pixels, as JSON.
TILES = "simmim tiles"

_GREY = 128
_MIN_TILE = 128
_GAP = 4


class Panels(NamedTuple):
    """The columns of a contact sheet, with one row per image."""

    input: UInt8[Tensor, "b c h w"]
    masked: UInt8[Tensor, "b c h w"]
    reconstruction: UInt8[Tensor, "b c h w"]


def panels(result: Reconstruction, show: Callable[[Tensor], Tensor]) -> Panels:
    """The images of a reconstruction in uint8: input, with masked pixels grey, and reconstructed.

    `show` converts normalised images to uint8.
    """
    images = show(result.images)
    grey = torch.full_like(images, _GREY)
    return Panels(
        images,
        torch.where(result.mask.unsqueeze(1), grey, images),
        show(result.predicted_images),
    )


def contact_sheet(
    columns: Panels,
    headings: Sequence[str] = Panels._fields,
    captions: Sequence[str] = (),
) -> Image.Image:
    """Draws the panels in rows of input, masked, reconstruction, two images a row, with headings.

    Images with more than three channels show the first three; with fewer, the first in grey.
    `captions`, one per image, are drawn below. `info[TILES]` is the position of each tile.
    """
    count, _, height, width = columns.input.shape
    # Small images are enlarged by an integer factor, so that pixels stay square and sharp.
    factor = max(1, -(-_MIN_TILE // max(height, width)))
    tile_height, tile_width = height * factor, width * factor
    groups = 2 if count > 1 else 1
    font_size = max(12, tile_height // 10)
    font = ImageFont.load_default(font_size)
    heading = round(1.6 * font_size)
    small = max(12, round(0.7 * font_size))
    row_height = tile_height + _GAP + (round(1.7 * small) if captions else 0)
    group_width = 3 * tile_width + 2 * _GAP
    sheet = Image.new(
        "RGB",
        (
            groups * group_width + (groups - 1) * 4 * _GAP + 2 * _GAP,
            heading + -(-count // groups) * row_height + _GAP,
        ),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    tiles: list[list[list[int]]] = [[] for _ in range(count)]
    for group in range(groups):
        group_left = _GAP + group * (group_width + 4 * _GAP)
        for column, (name, images) in enumerate(zip(headings, columns, strict=True)):
            left = group_left + column * (tile_width + _GAP)
            draw.text((left + tile_width // 2, heading // 2), name, "black", font, anchor="mm")
            for row, image in enumerate(images[group::groups]):
                tile = _as_picture(image).resize(
                    (tile_width, tile_height), Image.Resampling.NEAREST
                )
                top = heading + row * row_height
                sheet.paste(tile, (left, top))
                place = [left, top, left + tile_width, top + tile_height]
                tiles[row * groups + group].append(place)
        for row, caption in enumerate(captions[group::groups]):
            middle = group_left + group_width // 2
            bottom = heading + (row + 1) * row_height - _GAP
            draw.text(
                (middle, bottom), caption, "black", ImageFont.load_default(small), anchor="md"
            )
    sheet.info[TILES] = tiles
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Writes a PNG with the positions of its tiles, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    where = PngImagePlugin.PngInfo()
    where.add_text(TILES, json.dumps(sheet.info[TILES]))
    with written_beside(path) as beside:
        sheet.save(beside, format="PNG", pnginfo=where)


def sheets_in(folder: Path) -> dict[int, Path]:
    """The sheets `step-….png` that a run has written to the folder, by step."""
    return {
        int(found[1]): path
        for path in sorted(folder.glob("step-*.png"))
        if (found := re.fullmatch(r"step-(\d+)", path.stem))
    }


def save_animation(sheets: Sequence[Image.Image], path: Path, seconds: float) -> None:
    """Writes a GIF that shows each sheet for this many seconds, in an endless loop."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(path) as beside:
        sheets[0].save(
            beside,
            format="GIF",
            save_all=True,
            append_images=list(sheets[1:]),
            duration=round(1000 * seconds),
            loop=0,
        )


def _as_picture(image: UInt8[Tensor, "c h w"]) -> Image.Image:
    channels = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    return Image.fromarray(channels.permute(1, 2, 0).cpu().numpy())
