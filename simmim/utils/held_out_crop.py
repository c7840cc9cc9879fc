"""How held-out images are shown to a model, as its file tells."""

from typing import TypedDict


class HeldOutCrop(TypedDict):
    """Options of `simmim.data.transforms.CenterCrop`, with which a classifier was validated."""

    crop_ratio: float
    squash: bool
