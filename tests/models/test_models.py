"""Whole models: what reaches a prediction and what does not, for any number of channels."""

from typing import Any

import pytest
import torch

from simmim.models.classifier import Classifier
from simmim.models.heads import HeadKind
from simmim.models.masking import enlarge
from simmim.models.simmim import SimMIM
from simmim.models.swin import SwinTransformer
from simmim.models.swin.blocks import SwinBlock
from simmim.models.swin.patch_embed import Norm

HEADS: list[HeadKind] = ["linear", "mlp", "inverse_swin"]


def tiny_encoder(**changes: Any) -> SwinTransformer:
    arguments: dict[str, Any] = {
        "embed_dim": 8,
        "depths": (2, 2),
        "num_heads": (2, 2),
        "image_size": 16,
        "window_size": 2,
        "patch_size": 2,
    }
    return SwinTransformer(**(arguments | changes))


def awake(model: torch.nn.Module) -> torch.nn.Module:
    """The model with every parameter drawn again: at its start, its blocks are the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def random_mask() -> torch.Tensor:
    return torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.6


def test_hidden_pixels_do_not_reach_the_prediction() -> None:
    model, mask = awake(SimMIM(tiny_encoder())), random_mask()
    images = torch.randn(2, 3, 16, 16)
    hidden = enlarge(mask, 2).unsqueeze(1)
    changed = torch.where(hidden, 100 * torch.randn_like(images), images)
    assert torch.equal(model(changed, mask), model(images, mask))


def test_every_visible_pixel_reaches_the_prediction_and_no_hidden_one() -> None:
    model, mask = awake(SimMIM(tiny_encoder())), random_mask()
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    prediction = model(images, mask)
    (prediction * torch.randn_like(prediction)).sum().backward()
    visible = ~enlarge(mask, 2).unsqueeze(1).expand_as(images)
    assert torch.equal(images.grad.ne(0), visible)


def test_hidden_pixels_are_predicted_from_visible_ones() -> None:
    model, mask = awake(SimMIM(tiny_encoder())), random_mask()
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    hidden = enlarge(mask, 2).unsqueeze(1)
    (model(images, mask) * hidden).sum().backward()
    assert images.grad.any()


def test_the_mask_token_stands_where_the_mask_is_true_alone() -> None:
    model, images = awake(SimMIM(tiny_encoder())), torch.randn(2, 3, 16, 16)
    nothing, everything = torch.zeros(2, 8, 8).bool(), torch.ones(2, 8, 8).bool()
    seen = model(images, nothing)
    blind = model(images, everything)
    with torch.no_grad():
        model.mask_token.add_(1)
    assert torch.equal(model(images, nothing), seen)
    assert not torch.allclose(model(images, everything), blind)
    assert torch.equal(blind[0], blind[1])
    assert torch.equal(seen, model.head(model.encoder.encode(model.encoder.embed(images))))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("in_channels", [1, 4, 14])
@pytest.mark.parametrize("image_size", [(16, 16), (8, 24)])
def test_a_prediction_has_the_images_shape_for_any_channels(
    in_channels: int, image_size: tuple[int, int], head: HeadKind
) -> None:
    model = SimMIM(tiny_encoder(in_channels=in_channels, image_size=image_size), head)
    images = torch.randn(2, in_channels, *image_size)
    mask = torch.zeros(2, image_size[0] // 2, image_size[1] // 2, dtype=torch.bool)
    assert model(images, mask).shape == images.shape


@pytest.mark.parametrize("head", HEADS)
def test_each_token_predicts_its_own_pixels(head: HeadKind) -> None:
    # One block a window wide sees its own window alone, so that only these pixels change.
    encoder = tiny_encoder(depths=(1,), num_heads=(2,))
    model, images = awake(SimMIM(encoder, head)), torch.randn(1, 3, 16, 16)
    changed = images.clone()
    changed[..., 4:8, 12:16] += 1
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    differs = (model(images, mask) != model(changed, mask)).any(dim=1)[0]
    assert differs[4:8, 12:16].all()
    assert differs.sum() == 16


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("norm", ["res_post", "pre"])
def test_a_head_begins_as_its_encoder_does(head: HeadKind, norm: Norm) -> None:
    torch.manual_seed(0)
    model = SimMIM(tiny_encoder(norm=norm), head)
    blocks = [part for part in model.head.modules() if isinstance(part, SwinBlock)]
    assert len(blocks) == (4 if head == "inverse_swin" else 0)
    for block in blocks:
        assert bool(block.norm1.weight.any()) == (norm == "pre")
        assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_of_simmim_learns(head: HeadKind) -> None:
    model, mask = awake(SimMIM(tiny_encoder(), head)), random_mask()
    prediction = model(torch.randn(2, 3, 16, 16), mask)
    (prediction * torch.randn_like(prediction)).sum().backward()
    assert [name for name, p in model.named_parameters() if not p.grad.any()] == []


def test_the_mask_token_starts_as_small_noise() -> None:
    torch.manual_seed(0)
    token = SimMIM(tiny_encoder(embed_dim=256)).mask_token
    assert token.std().item() == pytest.approx(0.02, rel=0.2)


def test_classes_are_linear_in_the_pooled_last_feature_map() -> None:
    model = awake(Classifier(tiny_encoder(), 5))
    images = torch.randn(2, 3, 16, 16)
    pooled = model.encoder(images).mean(dim=(2, 3))
    expected = pooled @ model.head.linear.weight.T + model.head.linear.bias
    torch.testing.assert_close(model(images), expected)


def test_a_classifier_starts_without_a_preference() -> None:
    torch.manual_seed(0)
    head = Classifier(tiny_encoder(embed_dim=64), 100).head
    assert not head.linear.bias.any()
    assert head.linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
