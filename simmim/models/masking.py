"""Random masks for SimMIM (arXiv 2111.09886, section 3.2)."""

import math

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from simmim.utils.errors import UserError
from simmim.utils.rng import derive_seed, random_bits
from simmim.utils.sizes import Pair, Size, as_pair, show


class RandomMaskGenerator:
    """Masks a fixed ratio of each image's square patches, sampled without replacement.

    A mask depends only on (seed, step, index in the global batch), not on the number of devices
    or on which device draws it.

    Args:
        image_size: pixels, an int or `(height, width)`.
        patch_size: side of a mask patch in pixels (the paper: 32).
        token_size: side of the encoder's patch in pixels; masks have one entry per token.
        ratio: share of patches to mask, in (0, 1); the number of patches is rounded up.

    Raises:
        UserError: sizes that do not divide each other, or an invalid ratio.
    """

    def __init__(
        self,
        image_size: Size,
        patch_size: int = 32,
        token_size: int = 4,
        ratio: float = 0.6,
        seed: int = 0,
    ) -> None:
        self.image_size = as_pair(image_size, "model.image_size")
        self.patch_size = patch_size
        self.token_size = token_size
        self.ratio = ratio
        self.seed = seed
        self._check()
        self.grid_size: Pair = (
            self.image_size[0] // patch_size,
            self.image_size[1] // patch_size,
        )
        self.num_patches = self._count_patches(patch_size)
        self.num_masked = self._count_masked(patch_size)

    def __call__(self, places: Int[Tensor, " b"], *, step: int) -> Bool[Tensor, "b h w"]:
        """Masks (True is masked, one entry per token) for these batch indices (`places`) at `step`."""
        patches = torch.arange(self.num_patches, device=places.device)
        counters = places[:, None] * self.num_patches + patches[None, :]
        scores = random_bits(derive_seed(self.seed, "mask", step), counters)
        rank = scores.argsort(dim=1).argsort(dim=1)
        mask = (rank < self.num_masked).view(-1, *self.grid_size)
        return enlarge(mask, self.patch_size // self.token_size)

    def most_tokens(self, stride: int) -> int:
        """The most squares of side `stride` pixels in an image that can contain a masked pixel."""
        tokens = (self.image_size[0] // stride) * (self.image_size[1] // stride)
        # A patch that is not aligned with the squares touches one more along each side.
        across = 0 if self.patch_size % stride == 0 or stride % self.patch_size == 0 else 1
        touched = -(-self.patch_size // stride) + across
        return min(tokens, self.num_masked * touched**2)

    def _check(self) -> None:
        if not 0 < self.ratio < 1:
            raise UserError(
                f"mask ratio {self.ratio} is not between 0 and 1 (both excluded); use mask.ratio=0.6"
            )
        if any(side % self.token_size for side in self.image_size):
            raise UserError(
                f"image size {show(self.image_size)} is not a multiple of the encoder's patch "
                f"{self.token_size}; use model.image_size={32 * self.token_size}"
            )
        if self.patch_size < self.token_size or self.patch_size % self.token_size:
            raise UserError(
                f"mask patch {self.patch_size} is not a multiple of the encoder's patch "
                f"{self.token_size}; use {self._fitting_patches()}"
            )
        if any(side % self.patch_size for side in self.image_size):
            raise UserError(
                f"mask patch {self.patch_size} does not divide image size "
                f"{show(self.image_size)}; use {self._fitting_patches()}"
            )
        patches = self._count_patches(self.patch_size)
        if self._count_masked(self.patch_size) == patches:
            # Rounded down to hundredths, so that the suggested ratio leaves a patch visible.
            highest = 100 * (patches - 1) // patches / 100
            raise UserError(
                f"mask ratio {self.ratio} masks all {patches} patches of {self.patch_size} px; use "
                + (f"mask.ratio={highest} or less, or " if highest else "")
                + self._fitting_patches()
            )

    def _count_patches(self, patch_size: int) -> int:
        return (self.image_size[0] // patch_size) * (self.image_size[1] // patch_size)

    def _count_masked(self, patch_size: int) -> int:
        # Rounded first, so that 0.55 · 100 (55.00000000000001 in floats) gives 55.
        return math.ceil(round(self.ratio * self._count_patches(patch_size), 9))

    def _fitting_patches(self) -> str:
        """Up to three mask patch sizes that fit the image, the encoder and the ratio, as advice."""
        fitting = [
            size
            for size in range(self.token_size, min(self.image_size) + 1, self.token_size)
            if all(side % size == 0 for side in self.image_size)
            and self._count_masked(size) < self._count_patches(size)
        ]
        near = sorted(sorted(fitting, key=lambda size: abs(size - self.patch_size))[:3])
        return f"mask.patch_size={' or '.join(map(str, near))}" if near else "a larger image"


def enlarge(mask: Bool[Tensor, "b h w"], factor: int) -> Bool[Tensor, "b H W"]:
    """Repeats each entry of a mask over a `factor × factor` square."""
    return mask.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def masked_tokens(mask: Bool[Tensor, "b h w"], factor: int, count: int) -> Int[Tensor, "b count"]:
    """Indices of `count` squares of `factor × factor` entries per image, masked squares first.

    A square is masked if any of its entries is; squares are numbered row by row. `count` is an
    argument rather than read from the mask, which avoids a GPU synchronisation.
    """
    batch, height, width = mask.shape
    squares = mask.view(batch, height // factor, factor, width // factor, factor)
    is_masked = squares.any(dim=4).any(dim=2).flatten(1)
    return is_masked.byte().argsort(dim=1, descending=True, stable=True)[:, :count]


def cut_squares(
    images: Shaped[Tensor, "b *c H W"], tokens: Int[Tensor, "b n"], side: int
) -> Shaped[Tensor, "_squares *c {side} {side}"]:
    """Crops these squares of `side` pixels (numbered row by row) from each image: `b · n` images."""
    *others, height, width = images.shape
    squares = images.view(*others, height // side, side, width // side, side)
    squares = squares.movedim((-4, -2), (1, 2)).flatten(1, 2)
    rows = torch.arange(len(images), device=images.device).unsqueeze(1)
    return squares[rows, tokens].flatten(0, 1)
