"""The fused attention equals attention spelled out, for whole encoders."""

import pytest
import torch

from simmim.encoder import SwinTransformer, create_encoder
from simmim.sizes import Pair

# Image and window: windows that divide every map, that pad it (7 and 5 divide none of 40, 20, 10
# and 5 but 5), that shrink to it, and that differ by axis.
SIZES = [
    ((128, 128), (4, 4)),
    ((160, 160), (7, 7)),
    ((160, 96), (5, 5)),
    ((64, 160), (3, 7)),
]


def create(name: str, image_size: Pair, window_size: Pair) -> list[SwinTransformer]:
    """A fused and a reference encoder of two blocks a stage, with the same random weights."""
    fused, reference = (
        create_encoder(
            name,
            image_size=image_size,
            window_size=window_size,
            embed_dim=32,
            depths=(2, 2, 2, 2),
            num_heads=(1, 2, 4, 8),
            attention_backend=backend,
        ).eval()
        for backend in ("sdpa", "reference")
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    reference.load_state_dict(fused.state_dict())
    return [fused, reference]


@pytest.mark.parametrize("name", ["swinv2_t", "swin_t"])
@pytest.mark.parametrize(("image_size", "window_size"), SIZES, ids=str)
def test_fused_equals_reference(name: str, image_size: Pair, window_size: Pair) -> None:
    images = torch.randn(2, 3, *image_size, generator=torch.Generator().manual_seed(1))
    results = []
    for encoder in create(name, image_size, window_size):
        features = encoder(images)
        (features**3).mean().backward()
        results.append((features, {n: p.grad for n, p in encoder.named_parameters()}))
    (features, gradients), (expected, expected_gradients) = results

    assert (features - expected).abs().max() < 1e-5 * expected.abs().max()
    for key, gradient in expected_gradients.items():
        # Of all keys' bias, the gradient is zero but for rounding.
        largest = expected_gradients[key.replace("k_bias", "q_bias")].abs().max()
        assert (gradients[key] - gradient).abs().max() < 1e-4 * largest, key


@pytest.mark.parametrize("name", ["swinv2_t", "swin_t"])
@torch.no_grad()
def test_fused_equals_reference_at_another_size(name: str) -> None:
    """Images larger than planned get masks of their own."""
    images = torch.randn(1, 3, 192, 224, generator=torch.Generator().manual_seed(1))
    fused, reference = create(name, (160, 160), (7, 7))
    expected = reference(images)
    assert (fused(images) - expected).abs().max() < 1e-5 * expected.abs().max()
