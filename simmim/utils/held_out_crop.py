"""How held-out images are cropped for a model, as stored in its file."""

from typing import TypedDict


class HeldOutCrop(TypedDict):
    """Options of `simmim.data.transforms.CenterCrop`, with which a classifier was validated."""

    crop_ratio: float
    squash: bool
