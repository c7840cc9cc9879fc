"""Normalises images for a model, and back, on the images' device."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Real, UInt8
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalisation(NamedTuple):
    """`mean` and `std` of each channel: of uint8 values scaled to [0, 1], of floats unscaled."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def normalise(self, images: Real[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Float32 images of about zero mean and unit variance; values not finite become the mean."""
        mean, std = self._on(images)
        if images.dtype == torch.uint8:
            return (images.float() / 255 - mean) / std
        return ((images.float() - mean) / std).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def invert(self, images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
        """Normalised images back in uint8, to be shown."""
        mean, std = self._on(images)
        return ((images.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def _on(self, images: Tensor) -> tuple[Float[Tensor, "c 1 1"], Float[Tensor, "c 1 1"]]:
        mean, std = (_send(values, images.device).view(-1, 1, 1) for values in self)
        return mean, std


def _send(values: tuple[float, ...], device: torch.device) -> Float[Tensor, " c"]:
    """Copies values to the device without waiting: a GPU copies pinned memory asynchronously."""
    there = torch.tensor(values, dtype=torch.float32, pin_memory=device.type == "cuda")
    return there.to(device, non_blocking=device.type != "mps")  # MPS would not keep `there` alive


def stretch(images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    """Normalised values as an image: black is two deviations below the mean, white two above."""
    return ((images.float() / 4 + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)
