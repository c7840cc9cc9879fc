"""How an image gets another size in pixels."""

from typing import Literal

from jaxtyping import Real
from torch import Tensor
from torch.nn import functional as F

from simmim.utils.sizes import Pair

# How pixels of another size are interpolated, always antialiased.
Interpolation = Literal["bicubic", "bilinear"]


def resize(
    images: Real[Tensor, "b c h w"], size: Pair, interpolation: Interpolation = "bicubic"
) -> Real[Tensor, "b c h2 w2"]:
    """Resizes with antialiasing, like torchvision's `resize` but without its overhead."""
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size, mode=interpolation, antialias=True)
