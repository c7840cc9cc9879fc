"""Windows on a feature map: partition, merge and attention masks.

Swin Transformer (arXiv 2103.14030), section 3.2. Pure functions on `b h w c` maps.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simmim.utils.sizes import Pair


class WindowGrid(NamedTuple):
    """How one block partitions its feature map; sizes are `(height, width)` in tokens.

    The map of `feature_size` is rolled by `shift_size` and cut into windows of `window_size`.
    """

    feature_size: Pair
    window_size: Pair
    shift_size: Pair

    @property
    def padded_size(self) -> Pair:
        """The feature size rounded up to a multiple of the window size."""
        (height, width), (window_height, window_width) = self.feature_size, self.window_size
        return (
            -(-height // window_height) * window_height,
            -(-width // window_width) * window_width,
        )


def fit_window(feature_size: Pair, window_size: Pair, *, shifted: bool) -> WindowGrid:
    """The grid of a block; a window that covers the map is clipped to it and not shifted.

    `feature_size` and `window_size` are in tokens; this applies to each axis independently. If
    `shifted`, the shift is half a window, as in the paper.
    """
    window = tuple(
        min(feature, side) for feature, side in zip(feature_size, window_size, strict=True)
    )
    shift = tuple(
        side // 2 if shifted and feature > side else 0
        for feature, side in zip(feature_size, window_size, strict=True)
    )
    return WindowGrid(feature_size, (window[0], window[1]), (shift[0], shift[1]))


def partition_windows(
    features: Float[Tensor, "b h w c"], grid: WindowGrid
) -> Float[Tensor, "b windows tokens c"]:
    """Pads the map to whole windows, rolls it by the shift and cuts it into the windows of `grid`."""
    (height, width), (padded_height, padded_width) = grid.feature_size, grid.padded_size
    if (padded_height, padded_width) != (height, width):
        features = F.pad(features, (0, 0, 0, padded_width - width, 0, padded_height - height))
    if grid.shift_size != (0, 0):
        features = features.roll((-grid.shift_size[0], -grid.shift_size[1]), dims=(1, 2))
    batch, channels = features.shape[0], features.shape[3]
    window_height, window_width = grid.window_size
    windows = features.view(
        batch,
        padded_height // window_height,
        window_height,
        padded_width // window_width,
        window_width,
        channels,
    )
    return windows.transpose(2, 3).reshape(batch, -1, window_height * window_width, channels)


def merge_windows(
    windows: Float[Tensor, "b windows tokens c"], grid: WindowGrid
) -> Float[Tensor, "b h w c"]:
    """Inverse of `partition_windows` with the same `grid`: joins windows, rolls back, crops padding."""
    (height, width), (padded_height, padded_width) = grid.feature_size, grid.padded_size
    batch, channels = windows.shape[0], windows.shape[3]
    window_height, window_width = grid.window_size
    features = windows.view(
        batch,
        padded_height // window_height,
        padded_width // window_width,
        window_height,
        window_width,
        channels,
    )
    features = features.transpose(2, 3).reshape(batch, padded_height, padded_width, channels)
    if grid.shift_size != (0, 0):
        features = features.roll(grid.shift_size, dims=(1, 2))
    return features[:, :height, :width]


def attention_mask(
    grid: WindowGrid, device: torch.device | None = None
) -> Bool[Tensor, "windows tokens tokens"] | None:
    """The attention mask of a `grid` (True is masked) on `device`; None if no pair is masked.

    Two tokens of a window may attend to each other if the roll did not bring them together and both
    are real or both padding. Padding attends to padding, so that no softmax row is empty.
    """
    if grid.shift_size == (0, 0) and grid.padded_size == grid.feature_size:
        return None
    (row_wrapped, row_padding), (column_wrapped, column_padding) = (
        _axis_regions(feature, padded, shift, device)
        for feature, padded, shift in zip(
            grid.feature_size, grid.padded_size, grid.shift_size, strict=True
        )
    )
    # One label for each of the at most eight regions that must not attend to each other.
    wrapped = 2 * row_wrapped[:, None] + column_wrapped[None, :]
    padding = row_padding[:, None] | column_padding[None, :]
    regions = (wrapped + 4 * padding)[None, :, :, None].float()
    unshifted = grid._replace(feature_size=grid.padded_size, shift_size=(0, 0))
    labels = partition_windows(regions, unshifted)[0, :, :, 0]
    return labels[:, :, None] != labels[:, None, :]


def _axis_regions(
    feature: int, padded: int, shift: int, device: torch.device | None
) -> tuple[Int[Tensor, " padded"], Bool[Tensor, " padded"]]:
    """For each position of a rolled axis: 1 if it wrapped around (else 0), and if it is padding."""
    place = torch.arange(padded, device=device)
    return (place >= padded - shift).long(), (place + shift) % padded >= feature
