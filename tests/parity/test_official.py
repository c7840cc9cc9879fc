"""Encoders, loss and targets against the official code; needs `--official PATH`, see conftest."""

from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from simmim.checkpoints import from_official, to_official
from simmim.models.classifier import Classifier
from simmim.models.losses import local_statistics, masked_l1
from simmim.models.masking import enlarge
from simmim.models.simmim import SimMIM
from simmim.models.swin import SwinTransformer, create_encoder

from .compare import (
    FLOAT32,
    FLOAT64,
    GRADIENT,
    LOSS,
    assert_equal,
    assert_gradients_equal,
    build,
    draw_images,
    draw_mask,
    gradients_of,
    in_double,
    move_targets_off,
    randomise,
)

Official = Callable[[str], ModuleType]
DERIVED = ("relative_coords_table", "relative_position_index", "attn_mask")


def load(model: nn.Module, ours: nn.Module) -> nn.Module:
    """Gives our weights to an official model; only its derived tables may be missing."""
    report = model.load_state_dict(to_official(ours.state_dict()), strict=False)
    assert not report.unexpected_keys
    assert all(name.endswith(DERIVED) for name in report.missing_keys)
    return model


def sizes(encoder: SwinTransformer) -> dict[str, Any]:
    return {
        "img_size": encoder.image_size[0],
        "window_size": encoder.window_size[0],
        "embed_dim": encoder.embed_dim,
        "depths": list(encoder.depths),
        "num_heads": list(encoder.num_heads),
        "drop_path_rate": 0.0,
    }


@pytest.mark.parametrize(
    ("name", "image_size", "window_size", "pretrained"),
    [
        ("swinv2_t", 256, 8, None),
        ("swinv2_t", 256, 16, (12, 12, 12, 6)),
        ("swinv2_b", 192, 12, None),
        ("swin_t", 224, 7, None),
        ("swin_b", 192, 6, None),
    ],
)
@torch.no_grad()
def test_logits_equal(
    official: Official,
    name: str,
    image_size: int,
    window_size: int,
    pretrained: tuple[int, ...] | None,
) -> None:
    encoder = build(
        lambda: create_encoder(
            name,
            image_size=image_size,
            window_size=window_size,
            pretrained_window_sizes=pretrained,
        )
    )
    ours = randomise(Classifier(encoder, 10))
    arguments = sizes(encoder) | {"num_classes": 10}
    if name.startswith("swinv2"):
        arguments["pretrained_window_sizes"] = pretrained or (0, 0, 0, 0)
        theirs = official("swin_transformer_v2").SwinTransformerV2(**arguments).eval()
    else:
        theirs = official("swin_transformer").SwinTransformer(**arguments).eval()
    images = draw_images(1, 3, image_size, image_size)
    load(theirs, ours)
    assert_equal(ours(images), theirs(images), FLOAT32, "our weights")
    randomise(theirs, seed=3)
    ours.load_state_dict(from_official(theirs.state_dict()))
    assert_equal(ours(images), theirs(images), FLOAT32, "their weights")


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("name", ["swinv2_t", "swin_t"])
def test_simmim_equal(official: Official, name: str, normalised: bool) -> None:
    module = official("simmim")
    ours = randomise(SimMIM(create_encoder(name, image_size=64, window_size=2)))
    their_encoder = {
        "swinv2_t": module.SwinTransformerV2ForSimMIM,
        "swin_t": module.SwinTransformerForSimMIM,
    }[name](**sizes(ours.encoder), num_classes=0)
    target = SimpleNamespace(ENABLE=normalised, PATCH_SIZE=47)
    theirs = module.SimMIM(
        SimpleNamespace(NORM_TARGET=target),
        their_encoder,
        encoder_stride=32,
        in_chans=3,
        patch_size=4,
    ).eval()
    load(theirs, ours)
    mask = draw_mask(2, 16, 16)
    images = draw_images(2, 3, 64, 64)
    if not normalised:  # as the target then is the image, it can be told where to be
        images = move_targets_off(ours(images, mask), images, mask)
    their_loss = theirs(images, mask.long())
    targets = local_statistics(images, 47).normalise(images) if normalised else images
    loss = masked_l1(ours(images, mask), targets, enlarge(mask, 4))
    assert_equal(loss, their_loss, LOSS, "loss")
    if not normalised:
        their_loss.backward()
        loss.backward()
        assert_gradients_equal(ours, from_official(gradients_of(theirs)), GRADIENT)
    ours.load_state_dict(from_official(theirs.state_dict()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_normalised_targets_equal(official: Official, dtype: torch.dtype) -> None:
    images = draw_images(2, 3, 64, 96).to(dtype)
    if dtype == torch.float64:  # smooth ones: the variance is a small difference of large numbers
        images = images.cumsum(2).cumsum(3)
    with in_double() if dtype == torch.float64 else nullcontext():
        ours = local_statistics(images, 47).normalise(images)
    theirs = official("simmim").norm_targets(images, 47)
    assert_equal(ours, theirs, FLOAT32 if dtype == torch.float32 else FLOAT64)
