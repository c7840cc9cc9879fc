"""Pictures of what the model sees and what it fills in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import default_collate

from simmim.console import warn
from simmim.data.datamodule import ImageDataModule
from simmim.data.samples import Sample, SampleKey, TransformedImages
from simmim.errors import UserError
from simmim.normalisation import stretch
from simmim.tasks.simmim import Reconstruction, SimMIMTask
from simmim.writing import written_beside

# The name under which a sheet's file says where its pictures are: for each image, in the order of the
# columns, `[left, top, right, bottom]` in pixels, as JSON.
TILES = "simmim tiles"

_GREY = 128
_MIN_TILE = 128
_GAP = 4


class Reconstructions(pl.Callback):
    """After each validation: held-out images, their visible part, and the prediction pasted in.

    Writes `reconstructions/step-….png` below the run directory, and the same to TensorBoard.

    Args:
        count: how many images; 0 for none.

    Raises:
        UserError: a negative `count`.
    """

    def __init__(self, run_dir: str | Path, count: int = 8) -> None:
        if count < 0:
            raise UserError(f"reconstructions.count {count} is negative; use 8, or 0 for none")
        self.folder = Path(run_dir, "reconstructions")
        self.count = count
        self._batch: Sample | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the same images each time."""
        if self.count == 0:
            return
        assert isinstance(pl_module, SimMIMTask)
        batch = self._images(trainer, pl_module.device)
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            result = pl_module.reconstruct_held_out(
                batch.image, torch.as_tensor(batch.sample_index)
            )
        if not trainer.is_global_zero:
            return
        # Values of another type than uint8 are no colours yet.
        is_picture = batch.image.dtype == torch.uint8
        show = pl_module.normalisation.invert if is_picture else stretch
        sheet = contact_sheet(panels(result, show))
        try:
            self._write(sheet, trainer)
        except OSError as error:
            warn(f"{self.folder} cannot be written to ({error.strerror}); training goes on")

    def _write(self, sheet: Image.Image, trainer: pl.Trainer) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        where = PngImagePlugin.PngInfo()
        where.add_text(TILES, json.dumps(sheet.info[TILES]))
        with written_beside(self.folder / f"step-{trainer.global_step:08d}.png") as beside:
            sheet.save(beside, format="PNG", pnginfo=where)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(
                    "reconstructions", _as_tensor(sheet), trainer.global_step
                )

    def _images(self, trainer: pl.Trainer, device: torch.device) -> Sample:
        """The first held-out images, as validation sees them."""
        if self._batch is None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            assert isinstance(data, ImageDataModule)
            images = TransformedImages(data.val, data.val_transform, data.seed, data.tolerance)
            shown = range(min(self.count, len(images)))
            batch: Sample = default_collate([images[SampleKey(0, index)] for index in shown])
            self._batch = Sample(
                batch.image.to(device), -1, torch.as_tensor(batch.sample_index, device=device)
            )
        return self._batch


class Panels(NamedTuple):
    """The columns of a contact sheet, one row an image."""

    input: UInt8[Tensor, "b c h w"]
    masked: UInt8[Tensor, "b c h w"]
    reconstruction: UInt8[Tensor, "b c h w"]


def panels(result: Reconstruction, show: Callable[[Tensor], Tensor]) -> Panels:
    """Images of a reconstruction in uint8: as they are, with masked pixels grey, and filled in.

    `show` makes uint8 of normalised images.
    """
    images = show(result.images)
    grey = torch.full_like(images, _GREY)
    return Panels(
        images,
        torch.where(result.mask.unsqueeze(1), grey, images),
        show(result.predicted_images),
    )


def contact_sheet(columns: Panels) -> Image.Image:
    """Draws the panels in rows of input, masked, reconstruction, two images a row, with a heading.

    Images of more or fewer than three channels show their first three, or one in grey. `info[TILES]`
    says where each stands.
    """
    count, _, height, width = columns.input.shape
    # Small images are enlarged by a whole factor, so that pixels stay square and sharp.
    factor = max(1, -(-_MIN_TILE // max(height, width)))
    tile_height, tile_width = height * factor, width * factor
    groups = 2 if count > 1 else 1
    font_size = max(12, tile_height // 10)
    font = ImageFont.load_default(font_size)
    heading = round(1.6 * font_size)
    group_width = 3 * tile_width + 2 * _GAP
    sheet = Image.new(
        "RGB",
        (
            groups * group_width + (groups - 1) * 4 * _GAP + 2 * _GAP,
            heading + -(-count // groups) * (tile_height + _GAP) + _GAP,
        ),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    tiles: list[list[list[int]]] = [[] for _ in range(count)]
    for group in range(groups):
        for column, (name, images) in enumerate(columns._asdict().items()):
            left = _GAP + group * (group_width + 4 * _GAP) + column * (tile_width + _GAP)
            draw.text((left + tile_width // 2, heading // 2), name, "black", font, anchor="mm")
            for row, image in enumerate(images[group::groups]):
                tile = _as_picture(image).resize(
                    (tile_width, tile_height), Image.Resampling.NEAREST
                )
                top = heading + row * (tile_height + _GAP)
                sheet.paste(tile, (left, top))
                place = [left, top, left + tile_width, top + tile_height]
                tiles[row * groups + group].append(place)
    sheet.info[TILES] = tiles
    return sheet


def _as_picture(image: UInt8[Tensor, "c h w"]) -> Image.Image:
    channels = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    return Image.fromarray(channels.permute(1, 2, 0).cpu().numpy())


def _as_tensor(picture: Image.Image) -> UInt8[Tensor, "3 h w"]:
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.view(picture.height, picture.width, 3).permute(2, 0, 1)
