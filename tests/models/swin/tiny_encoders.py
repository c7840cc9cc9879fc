"""Small encoders for the tests of this folder."""

from typing import Any

import torch

from simmim.models.swin import SwinTransformer

TINY: dict[str, Any] = {
    "embed_dim": 8,
    "depths": (2, 2),
    "num_heads": (2, 2),
    "image_size": 16,
    "window_size": 2,
    "patch_size": 2,
}


def tiny(**changes: Any) -> SwinTransformer:
    """A small encoder in evaluation, past its start as the identity."""
    torch.manual_seed(0)
    encoder = SwinTransformer(**(TINY | changes)).eval()
    return awaken(encoder)


@torch.no_grad()
def awaken(encoder: SwinTransformer) -> SwinTransformer:
    """Draws every parameter again, so that no branch is silent and no bias is zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in encoder.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return encoder
