"""The reconstruction stage: draws given images, masked and reconstructed by a model."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from hydra.utils import instantiate
from jaxtyping import Bool, Float
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from simmim.checkpoints.model_file import load_trained
from simmim.checkpoints.read import weights_file
from simmim.checkpoints.run_state import RunState, read_state
from simmim.models.losses import check_target_window
from simmim.models.reconstruction import (
    MaskedL1,
    Reconstruction,
    fill_in,
    hide,
    masked_l1_as_trained,
    masked_l1_of_pictures,
)
from simmim.models.simmim import SimMIM
from simmim.models.swin import SwinTransformer
from simmim.reconstruct.contact_sheet import (
    Panels,
    contact_sheet,
    panels,
    save_animation,
    save_sheet,
)
from simmim.reconstruct.image_files import find_named
from simmim.reconstruct.masks import Masks, masks_of_files, random_masks
from simmim.reconstruct.resize_to_model import Fitted, alike, fit_image
from simmim.utils.console import say
from simmim.utils.devices import find_device
from simmim.utils.errors import UserError
from simmim.utils.files import as_json, written_beside
from simmim.utils.normalization import Normalisation, stretch
from simmim.utils.sizes import Pair, Size, as_pair, show

_PATCH, _RATIO = 32, 0.6  # the paper's, for files that do not store theirs


class MaskChoice(NamedTuple):
    """The options of masks.

    Attributes:
        ratio: share of patches to mask; None: as in training.
        patch_size: side of a mask patch in pixels; None: as in training.
        file: a mask for all images, or a folder of masks named like the images; None: random masks.
    """

    ratio: float | None = None
    patch_size: int | None = None
    file: str | None = None


class Animation(NamedTuple):
    """The mask ratios of an animation's frames, and the seconds for which each is shown."""

    ratios: Sequence[float]
    seconds: float


class Grid(NamedTuple):
    """Reconstructions of a group of images: the contact sheet, and metrics with one entry per image."""

    sheet: Image.Image
    masked_share: Float[Tensor, " b"]
    in_units: MaskedL1
    as_trained: MaskedL1


class Filler(NamedTuple):
    """A SimMIM model with its training settings, its device, and the bands of images to show."""

    model: SimMIM
    normalisation: Normalisation
    target_window: int | None
    device: torch.device
    bands: list[int]

    def fill(self, group: Sequence[Fitted], mask: Bool[Tensor, "b h w"]) -> Grid:
        """Masks these images and reconstructs them; returns the contact sheet and metrics."""
        batch = torch.stack([one.image for one in group]).to(self.device)
        hidden = hide(batch, mask.to(self.device), self.normalisation, self.target_window)
        with torch.no_grad():
            result = fill_in(self.model, hidden)
        is_picture = batch.dtype == torch.uint8
        unit = torch.tensor(self.normalisation.std, device=self.device)
        in_units = masked_l1_of_pictures(result, unit * 255 if is_picture else unit)
        share = result.mask.float().mean(dim=(1, 2))
        sheet = self._draw(result, is_picture, share, in_units)
        return Grid(sheet, share, in_units, masked_l1_as_trained(result))

    def _draw(
        self,
        result: Reconstruction,
        is_picture: bool,
        share: Float[Tensor, " b"],
        masked_l1: MaskedL1,
    ) -> Image.Image:
        columns = panels(result, self.normalisation.invert if is_picture else stretch)
        shown = Panels(*(images[:, self.bands] for images in columns))
        masked = f"{share[0]:.0%} masked" if share.eq(share[0]).all() else "masked"
        captions = [f"masked L1: {_tell(masked_l1, row)}" for row in range(len(share))]
        return contact_sheet(shown, ("input", masked, "reconstruction"), captions)


def reconstruct(
    *,
    checkpoint: str | None,
    images: str | Sequence[str] | None,
    image_size: int | Sequence[int] | Literal["own"] | None,
    most_images: int,
    images_per_grid: int,
    mask: DictConfig,
    target_window: int | Literal["auto"] | None,
    bands: Sequence[int] | None,
    animate: bool,
    animation: DictConfig,
    device: str,
    seed: int,
    run_dir: str,
) -> dict[str, Any]:
    """Writes contact sheets, and metrics of each image as JSON; returns the content of the JSON.

    Raises:
        UserError: no SimMIM model, no images, or masks or an image size that do not fit.
    """
    paths = list_images(images, most_images)
    if images_per_grid < 1:
        raise UserError(f"images_per_grid={images_per_grid} is not positive; use 8")
    filler, options = load_filler(checkpoint, target_window, bands, device)
    encoder = filler.model.encoder
    chosen = fill_choice(instantiate(mask), options)
    frames: Animation = instantiate(animation)
    if animate and chosen.file is not None:
        raise UserError("animate=true goes through ratios of random masks; leave mask.file out")
    sources = [create_masks(chosen, paths, encoder, seed)]
    if animate:
        assert chosen.patch_size is not None
        sources += [
            random_masks(chosen.patch_size, ratio, encoder.patch_size, seed, keeps_one=True)
            for ratio in require_ratios(frames)
        ]
    size = encoder.image_size if image_size is None else image_size
    target = None if isinstance(size, str) else require_stride(size, encoder)
    multiple = math.lcm(encoder.stride, chosen.patch_size or 1)

    folder = Path(run_dir)
    entries: list[dict[str, Any]] = []
    fitted = (fit_image(path, encoder.in_channels, target, multiple) for path in paths)
    for number, group in enumerate(alike(fitted, images_per_grid)):
        of_group = [one.path for one in group]
        masks = [source(of_group, len(entries), _size(group)) for source in sources]
        grid, *steps = (filler.fill(group, mask) for mask in masks)
        name = f"grid-{number:04d}"
        save_sheet(grid.sheet, folder / f"{name}.png")
        if steps:
            save_animation([step.sheet for step in steps], folder / f"{name}.gif", frames.seconds)
        for row, one in enumerate(group):
            entries.append({"grid": f"{name}.png"} | describe(one, grid, steps, row))
            say(f"{one.describe()}; masked L1 {_tell(grid.in_units, row)}")
    figures = {
        "checkpoint": checkpoint,
        "mask": chosen._asdict(),
        "seed": seed,
        "target_window": filler.target_window,
        "images": entries,
    }
    with written_beside(folder / "reconstructions.json") as beside:
        beside.write_text(as_json(figures) + "\n")
    say(f"{len(entries)} images: {folder / 'grid-*.png'}, {folder / 'reconstructions.json'}")
    return figures


def list_images(images: str | Sequence[str] | None, most: int) -> list[Path]:
    """The first `most` of the named image files; logs a message if there are more."""
    if images is None:
        raise UserError("images is not set; use images=DIR, a file, a glob or a list of these")
    if most < 1:
        raise UserError(f"most_images={most} is not positive; use 64")
    paths = find_named(images, "images")
    if len(paths) > most:
        say(f"the first {most} of {len(paths)} images; most_images={len(paths)} takes all")
    return paths[:most]


def load_filler(
    checkpoint: str | None,
    target_window: int | Literal["auto"] | None,
    bands: Sequence[int] | None,
    device: str,
) -> tuple[Filler, dict[str, Any]]:
    """Loads the model, and the options that it was trained with (empty if the file has none).

    Raises:
        UserError: no checkpoint, or a checkpoint of a model other than SimMIM.
    """
    if checkpoint is None:
        raise UserError("checkpoint is not set; use checkpoint=RUN, the directory of a pretraining")
    place = find_device(device)
    last = Path(checkpoint, "checkpoints", "last.ckpt")
    path = weights_file(last if last.exists() else checkpoint)
    trained = load_trained(path)
    if not isinstance(trained.model, SimMIM):
        raise UserError(
            f"{path} holds a {type(trained.model).__name__}, without SimMIM's mask token and head; "
            "give a pretraining run, its checkpoints/last.ckpt, or what export format=hf made of that"
        )
    options = {} if path.suffix == ".safetensors" else RunState(path, read_state(path)).options
    window = options.get("target_window") if target_window == "auto" else target_window
    if window is not None:
        check_target_window(window)
    encoder = trained.encoder
    say(f"SimMIM for images of {show(encoder.image_size)}, from {path}")
    shown = choose_bands(bands, encoder.in_channels)
    return Filler(trained.model.to(place), trained.normalisation, window, place, shown), options


def choose_bands(bands: Sequence[int] | None, channels: int) -> list[int]:
    """The indices of channels to show: three as red, green and blue, or one in grey."""
    if bands is None:
        return [0, 1, 2] if channels >= 3 else [0]
    if len(bands) not in (1, 3) or not all(0 <= band < channels for band in bands):
        raise UserError(
            f"bands={bands} are not one or three of the {channels} channels, 0 to {channels - 1}; "
            f"use bands=[{'2,1,0' if channels >= 3 else '0'}]"
        )
    return list(bands)


def fill_choice(choice: MaskChoice, options: dict[str, Any]) -> MaskChoice:
    """Replaces None by the values of training (`options`), or else by those of the paper."""
    if choice.file is not None:
        if choice.ratio is not None or choice.patch_size is not None:
            raise UserError(
                "mask.file says what is masked; leave mask.ratio and mask.patch_size out"
            )
        return choice
    ratio, patch_size = options.get("mask.ratio", _RATIO), options.get("mask.patch_size", _PATCH)
    return MaskChoice(
        ratio if choice.ratio is None else choice.ratio,
        patch_size if choice.patch_size is None else choice.patch_size,
    )


def require_ratios(animation: Animation) -> Sequence[float]:
    """The animation's ratios; UserError if these or its seconds are invalid."""
    if not animation.ratios or not all(0 < ratio < 1 for ratio in animation.ratios):
        raise UserError(
            f"animation.ratios={list(animation.ratios)} are not numbers between 0 and 1 (both "
            "excluded); use [0.25,0.5,0.75]"
        )
    if animation.seconds <= 0:
        raise UserError(f"animation.seconds={animation.seconds} is not positive; use 0.5")
    return animation.ratios


def create_masks(
    choice: MaskChoice, paths: Sequence[Path], encoder: SwinTransformer, seed: int
) -> Masks:
    """Creates the masks of a choice whose ratio and patch size are set, or of its file."""
    if choice.file is not None:
        return masks_of_files(Path(choice.file), paths, encoder.patch_size)
    assert choice.patch_size is not None
    assert choice.ratio is not None
    return random_masks(choice.patch_size, choice.ratio, encoder.patch_size, seed)


def require_stride(size: Size, encoder: SwinTransformer) -> Pair:
    """The size as (height, width); UserError unless it is a multiple of the encoder's stride."""
    pair = as_pair(size, "image_size")
    stride = encoder.stride
    if pair[0] % stride or pair[1] % stride:
        fitting = [max(1, round(side / stride)) * stride for side in pair]
        raise UserError(
            f"image_size={show(pair)} is not a multiple of the encoder's {stride} px; use "
            f"image_size=[{fitting[0]},{fitting[1]}], or image_size=own to cut each image to fit"
        )
    return pair


def describe(one: Fitted, grid: Grid, steps: Sequence[Grid], row: int) -> dict[str, Any]:
    """The JSON entry of an image, given its index (`row`) in its grid and the animation's steps."""
    is_picture = one.image.dtype == torch.uint8
    entry = {
        "image": str(one.path),
        "size": list(one.size),
        "part": one.box._asdict(),
        "shown_size": list(one.image.shape[-2:]),
        "masked_share": float(grid.masked_share[row]),
        "unit": "levels, 0 to 255" if is_picture else "values of the file",
        "masked_l1": _row(grid.in_units, row),
        "loss": _row(grid.as_trained, row),
    }
    if steps:
        entry["by_ratio"] = [
            {"masked_share": float(step.masked_share[row])} | _row(step.in_units, row)
            for step in steps
        ]
    return entry


def _size(group: Sequence[Fitted]) -> Pair:
    height, width = group[0].image.shape[-2:]
    return height, width


def _row(masked_l1: MaskedL1, row: int) -> dict[str, float]:
    return {name: float(values[row]) for name, values in masked_l1._asdict().items()}


def _tell(masked_l1: MaskedL1, row: int) -> str:
    model, mean, nearest = (float(values[row]) for values in masked_l1)
    return f"{model:.3g} (visible mean {mean:.3g}, nearest visible {nearest:.3g})"
