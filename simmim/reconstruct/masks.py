"""Masks for given images: random ones as in validation, or from files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from PIL import Image
from torch import Tensor

from simmim.models.masking import RandomMaskGenerator, enlarge
from simmim.utils.errors import UserError
from simmim.utils.sizes import Pair, show

# Masks for image files, given the index of the first one among all, and the image size in pixels.
Masks: TypeAlias = Callable[[Sequence[Path], int, Pair], Bool[Tensor, "b h w"]]

_SUFFIXES = (".png", ".npy")


def random_masks(
    patch_size: int, ratio: float, token_size: int, seed: int, *, keeps_one: bool = False
) -> Masks:
    """The masks of validation with this seed, for images in the same order.

    An image's mask at a larger ratio contains the one at a smaller ratio. With `keeps_one`, a ratio
    that would mask all of an image's few patches leaves one visible; otherwise it is an error.
    """

    def draw(paths: Sequence[Path], first: int, image_size: Pair) -> Bool[Tensor, "b h w"]:
        patches = (image_size[0] // patch_size) * (image_size[1] // patch_size)
        # Rounded up to whole patches, this ratio masks all but one.
        most = (patches - 1.5) / patches if keeps_one and patches > 1 else ratio
        generator = RandomMaskGenerator(image_size, patch_size, token_size, min(ratio, most), seed)
        return generator(torch.arange(first, first + len(paths)), step=-1)

    return draw


def masks_of_files(file: Path, images: Sequence[Path], token_size: int) -> Masks:
    """The mask `file` for every image, or if it is a folder, the mask in it with the image's name.

    Raises:
        UserError: a mask is missing (raised immediately), or does not fit its image (when read).
    """
    masks = {image: _find(file, image) for image in images}

    def read(paths: Sequence[Path], first: int, image_size: Pair) -> Bool[Tensor, "b h w"]:
        return torch.stack([read_mask(masks[path], image_size, token_size) for path in paths])

    return read


def read_mask(path: Path, image_size: Pair, token_size: int) -> Bool[Tensor, "h w"]:
    """Reads a mask (True is masked), with one entry per token.

    A PNG is white where masked and black elsewhere; a `.npy` contains True or 1, False or 0. The
    file has one entry per pixel, or per square of pixels of any side.

    Raises:
        UserError: the file cannot be read, has other values or a size that does not fit the image,
            masks a token only in part, or masks nothing or everything.
    """
    values = _read(path)
    height, width = values.shape
    side = image_size[0] // height if height else 0
    if side == 0 or (height * side, width * side) != image_size:
        tokens = (image_size[0] // token_size, image_size[1] // token_size)
        raise UserError(
            f"mask {path} is {height}×{width} and does not divide the image's "
            f"{image_size[0]}×{image_size[1]} pixels into squares; use {show(image_size)}, or one "
            f"entry for each token of {token_size} px, {show(tokens)}"
        )
    pixels = enlarge(values[None], side)
    tokens_masked = pixels[:, ::token_size, ::token_size]
    torn = enlarge(tokens_masked, token_size) != pixels
    if torn.any():
        _, row, column = torn.nonzero()[0].tolist()
        raise UserError(
            f"mask {path} ends within a token of the encoder at row {row}, column {column} of the "
            f"image; use squares of a multiple of {token_size} pixels"
        )
    if tokens_masked.all() or not tokens_masked.any():
        what = "leaves nothing visible" if tokens_masked.all() else "masks nothing"
        raise UserError(f"mask {path} {what}; white (True) is masked, black (False) visible")
    return tokens_masked[0]


def _find(file: Path, image: Path) -> Path:
    if not file.is_dir():
        if not file.is_file():
            raise UserError(
                f"mask.file={file} does not exist; give a .png or .npy, or their folder"
            )
        return file
    beside = [file / f"{image.stem}{suffix}" for suffix in _SUFFIXES]
    found = next((path for path in beside if path.is_file()), None)
    if found is None:
        raise UserError(f"{image} has no mask in mask.file={file}; put a {beside[0].name} there")
    return found


def _read(path: Path) -> Bool[Tensor, "h w"]:
    try:
        values = np.load(path) if path.suffix == ".npy" else _read_picture(path)
    except (OSError, ValueError, EOFError) as error:  # Pillow raises OSErrors
        raise UserError(
            f"mask {path} cannot be read ({error}); give a .png or a .npy of numbers"
        ) from error
    if values.ndim != 2:
        raise UserError(f"mask {path} has shape {values.shape}; use (height, width)")
    if not np.isin(values, (0, 1)).all():
        raise UserError(
            f"mask {path} has other values than two; use black and white, or False and True"
        )
    return torch.from_numpy(values.astype(np.bool_))


def _read_picture(path: Path) -> Shaped[np.ndarray, "h w"]:
    """White is 1 and black 0; greys are in between, and rejected by the caller."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L")) / 255
