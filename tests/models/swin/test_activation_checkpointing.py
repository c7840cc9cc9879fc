"""Checkpointed blocks and sequential attention: the plain result, with less kept backward."""

from typing import Any

import pytest
import torch

from simmim.models.swin import SwinTransformer, create_encoder
from simmim.utils.errors import UserError
from simmim.utils.sizes import Size

WAYS: dict[str, dict[str, Any]] = {
    "checkpointed": {"checkpoint_blocks": "all"},
    "some checkpointed": {"checkpoint_blocks": [1, 0, 2, 0]},
    "sequential": {"sequential_attention": 1},
    "some sequential": {"sequential_attention": [5, 3, 0, 0]},
    "both": {"checkpoint_blocks": "all", "sequential_attention": [3, 1, 1, 1]},
}


def create(name: str, image_size: Size, window_size: Size, **options: Any) -> SwinTransformer:
    torch.manual_seed(0)
    encoder = create_encoder(
        name,
        image_size=image_size,
        window_size=window_size,
        embed_dim=32,
        depths=(2, 2, 2, 1),
        num_heads=(1, 2, 4, 8),
        drop_path_rate=0.3,
        **options,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return encoder.train()


def step(encoder: SwinTransformer, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The features, and the gradients of all parameters and of the images, under drop path."""
    torch.manual_seed(2)
    images = images.clone().requires_grad_()
    features = encoder(images)
    (features**3).mean().backward()
    gradients = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
    assert images.grad is not None
    return {"features": features.detach(), "images": images.grad, **gradients}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "image_size", "window_size"),
    [("swinv2_t", 128, 4), ("swinv2_t", (160, 96), 5), ("swin_t", 160, 7)],
)
def test_the_result_is_that_of_the_plain_path(
    way: str, name: str, image_size: Size, window_size: Size
) -> None:
    """Windows that divide the maps, that pad them, and that shrink; masks by window; drop path."""
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(3))
    expected = step(create(name, image_size, window_size), images)
    result = step(create(name, image_size, window_size, **WAYS[way]), images)
    assert result.keys() == expected.keys()
    for key, value in expected.items():
        largest = expected[key.replace("k_bias", "q_bias")].abs().max()
        assert (result[key] - value).abs().max() <= 1e-6 * max(largest, 1), key


def kept_bytes(encoder: SwinTransformer, images: torch.Tensor) -> int:
    """Bytes kept for the backward pass, parameters apart."""
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in encoder.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = encoder(images)
    assert features.requires_grad
    return sum(kept.values())


def test_each_way_keeps_less() -> None:
    images = torch.randn(2, 3, 256, 256)
    kept = {
        way: kept_bytes(create("swinv2_t", 256, 8, **options), images)
        for way, options in {"plain": {}, **WAYS}.items()
    }
    assert kept["checkpointed"] < 0.3 * kept["plain"]
    assert kept["some checkpointed"] < 0.8 * kept["plain"]
    assert kept["sequential"] < 0.8 * kept["plain"]
    assert kept["some sequential"] < 0.9 * kept["plain"]
    assert kept["both"] <= kept["checkpointed"]


def test_without_gradients_nothing_is_recomputed_and_the_features_are_the_same() -> None:
    images = torch.randn(1, 3, 128, 128)
    plain, frugal = create("swinv2_t", 128, 4).eval(), create("swinv2_t", 128, 4, **WAYS["both"])
    with torch.no_grad():
        torch.testing.assert_close(frugal.eval()(images), plain(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_blocks": "some"}, r"=some is neither none nor all .* use all, or at most \["),
        ({"checkpoint_blocks": [1, 1]}, r"checkpoint_blocks=\[1,1\] .* at most \[2,2,6,2\]"),
        ({"checkpoint_blocks": [3, 0, 0, 0]}, r"checkpoint_blocks=\[3,0,0,0\] .* \[2,2,6,2\]"),
        ({"sequential_attention": -1}, r"sequential_attention=-1 .* of the 4 stages; use 1, 0 for"),
        ({"sequential_attention": [1]}, r"sequential_attention=\[1\] .* e.g. \[1,1,0,0\]"),
    ],
)
@pytest.mark.unchecked
def test_mistakes_name_the_value_and_what_would_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_encoder("swinv2_t", **options)
