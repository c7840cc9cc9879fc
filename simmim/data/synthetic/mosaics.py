"""Mosaics, the `demo` data's other pictures: the relative positions of tiles determine the class.

Three tiles to the right of each white tile, there is one of the class's colour. All other tiles are
drawn so that a picture has the same number of each colour; tiles at distances that are not a
multiple of three are independent. A model that does not see positions is right one time in three,
and one whose position bias shifts at a larger window (Swin V2, arXiv 2111.09883, section 3.3) gets
worse.
"""

import numpy as np
from jaxtyping import UInt8

from simmim.data.synthetic.rng import create_generator, draw_label

MOSAIC_CLASSES: tuple[str, ...] = ("red", "green", "blue")
#: Distance from a white tile to its tile of the class's colour, in tiles to the right.
DISTANCE = 3
# Tiles along the shorter side, at `detail` 1.
_TILES = 16
_WHITE, _EMPTY = len(MOSAIC_CLASSES), -1
_COLOURS = np.array([[230, 60, 60], [60, 210, 60], [60, 60, 230], [255, 255, 255]])
_WHITE_SHARE = 1 / 4
_GRAIN = 12.0


def render_mosaic(
    seed: int, split: str, index: int, image_size: tuple[int, int], detail: float = 1.0
) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
    """Draw sample `index` of a split at `image_size` (height, width), with its label.

    The label is an index in `MOSAIC_CLASSES`; each block of three samples holds every class once.
    At `detail` 1 there are 16 tiles along the shorter side, at 3 there are 48.
    """
    label = draw_label(seed, split, index, len(MOSAIC_CLASSES))
    rng = create_generator(seed, split, "mosaics", index)
    tile = min(image_size) / (_TILES * detail)
    # The tile's row or column for every row and column of pixels.
    rows, columns = (((np.arange(side) + 0.5) / tile).astype(int) for side in image_size)
    tiles = _lay(rng, label, int(rows[-1]) + 1, int(columns[-1]) + 1)
    coloured = _COLOURS[tiles][rows][:, columns]
    grain = rng.normal(0, _GRAIN, coloured.shape)
    return (coloured + grain).clip(0, 255).astype(np.uint8), label


def _lay(rng: np.random.Generator, label: int, rows: int, columns: int) -> np.ndarray:
    """The colour of every tile, as an index in `_COLOURS`."""
    tiles = _place_pairs(rng, label, rows, columns)
    # Exactly the same number of each colour: a model would learn random differences first.
    left = np.flatnonzero(tiles == _EMPTY)
    colours = np.arange((tiles != _WHITE).sum()) % len(MOSAIC_CLASSES)
    others = colours[colours != label][: len(left)]
    of_class = np.full(len(left) - len(others), label)
    tiles[left] = rng.permutation(np.concatenate((others, of_class)))
    return tiles.reshape(rows, columns)


def _place_pairs(rng: np.random.Generator, label: int, rows: int, columns: int) -> np.ndarray:
    """White tiles at random places, each with its tile of the class's colour; pairs share no tile.

    All pairs are inside the picture, so its first columns have no tile of the class's colour.
    """
    tiles = [_EMPTY] * (rows * columns)
    pairs = int(_WHITE_SHARE * len(tiles))
    for place in rng.permutation(len(tiles)).tolist():
        other = place + DISTANCE
        is_within = place % columns + DISTANCE < columns
        if pairs and is_within and tiles[place] == tiles[other] == _EMPTY:
            tiles[place], tiles[other] = _WHITE, label
            pairs -= 1
    return np.array(tiles)
