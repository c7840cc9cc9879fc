"""From uint8 images to what a model takes, and back; on whatever device the images are."""

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalisation(NamedTuple):
    """Mean and standard deviation of each channel, for values scaled to [0, 1]."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def normalise(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """uint8 images to float32 of about zero mean and unit variance, on their own device."""
        mean, std = self._on(images)
        return (images.float() / 255 - mean) / std

    def invert(self, images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
        """Normalised images back to uint8, for pictures."""
        mean, std = self._on(images)
        return ((images.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def _on(self, images: Tensor) -> tuple[Float[Tensor, "c 1 1"], Float[Tensor, "c 1 1"]]:
        mean, std = (
            torch.tensor(values, device=images.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return mean, std
