"""SwinV2 encoders and classifiers against timm and Hugging Face."""

from typing import NamedTuple

import pytest
import timm
import torch
from torch import Tensor
from transformers import Swinv2ForImageClassification, Swinv2Model

from simmim.checkpoints import from_hf, from_timm, to_hf, to_timm
from simmim.models.classifier import Classifier
from simmim.models.swin import SwinTransformer, create_encoder

from .compare import FLOAT32, assert_equal, build, draw_images, randomise
from .theirs import load_hugging_face, swinv2_config, timm_swinv2

TRANSFERRED = (12, 12, 12, 6)


class Case(NamedTuple):
    """Sizes as `create_encoder` takes them."""

    name: str
    image_size: tuple[int, int]
    window_size: tuple[int, int]
    pretrained_window_sizes: tuple[int, ...] | None = None
    same_in_hugging_face: bool = True


CASES = [
    Case("swinv2_t", (256, 256), (8, 8)),
    Case("swinv2_t", (192, 192), (12, 12)),
    Case("swinv2_t", (256, 256), (16, 16)),
    Case("swinv2_t", (256, 256), (16, 16), TRANSFERRED),
    Case("swinv2_b", (256, 256), (8, 8)),
    Case("swinv2_b", (192, 192), (12, 12)),
    Case("swinv2_b", (256, 256), (16, 16)),
    Case("swinv2_b", (256, 256), (16, 16), TRANSFERRED),
    # Hugging Face takes windows and shifts of both axes from the height, so that it agrees only
    # where all feature maps exceed the window on both. timm treats each axis by itself, as we do.
    Case("swinv2_t", (128, 192), (2, 2), (3, 3, 3, 3)),
    Case("swinv2_t", (256, 128), (8, 8), same_in_hugging_face=False),
    Case("swinv2_b", (64, 128), (4, 8), same_in_hugging_face=False),
]


class Ours(NamedTuple):
    """An encoder of ours, what went in and what came out."""

    case: Case
    encoder: SwinTransformer
    images: Tensor
    features: Tensor


def show(case: Case) -> str:
    sides = (*case.image_size, *case.window_size)
    transferred = "-transferred" if case.pretrained_window_sizes else ""
    return "{}-{}x{}-{}x{}{}".format(case.name, *sides, transferred)


@pytest.fixture(scope="module", params=CASES, ids=show)
def ours(request: pytest.FixtureRequest) -> Ours:
    case: Case = request.param
    encoder = build(
        lambda: create_encoder(
            case.name,
            image_size=case.image_size,
            window_size=case.window_size,
            pretrained_window_sizes=case.pretrained_window_sizes,
        )
    )
    images = draw_images(1, 3, *case.image_size)
    with torch.no_grad():
        return Ours(case, encoder, images, randomise(encoder)(images))


@torch.no_grad()
def test_equals_timm(ours: Ours) -> None:
    theirs = timm_swinv2(ours.encoder, ours.case.pretrained_window_sizes)
    theirs.load_state_dict(to_timm(ours.encoder.state_dict()))
    features = theirs.forward_features(ours.images).permute(0, 3, 1, 2)
    assert_equal(ours.features, features, FLOAT32)


@pytest.mark.parametrize(
    "ours", [case for case in CASES if case.same_in_hugging_face], ids=show, indirect=True
)
@torch.no_grad()
def test_equals_hugging_face(ours: Ours) -> None:
    config = swinv2_config(ours.encoder, ours.case.pretrained_window_sizes)
    theirs = build(lambda: Swinv2Model(config, add_pooling_layer=False))
    theirs.load_state_dict(to_hf(ours.encoder.state_dict()))
    tokens = theirs(ours.images).last_hidden_state.transpose(1, 2)
    assert_equal(ours.features, tokens.unflatten(2, ours.features.shape[2:]), FLOAT32)


@torch.no_grad()
def test_their_weights_load_into_ours() -> None:
    encoder = build(lambda: create_encoder("swinv2_t", image_size=128, window_size=8))
    images = draw_images(1, 3, 128, 128)
    theirs = randomise(timm_swinv2(encoder))
    encoder.load_state_dict(from_timm(theirs.state_dict()))
    assert_equal(encoder(images), theirs.forward_features(images).permute(0, 3, 1, 2), FLOAT32)
    model = randomise(build(lambda: Swinv2Model(swinv2_config(encoder))), seed=3)
    encoder.load_state_dict(from_hf(model.state_dict()))
    assert_equal(encoder(images).mean((2, 3)), model(images).pooler_output, FLOAT32)


@torch.no_grad()
def test_logits_equal() -> None:
    encoder = build(lambda: create_encoder("swinv2_t", image_size=128, window_size=8))
    ours = randomise(Classifier(encoder, 10))
    images = draw_images(2, 3, 128, 128)
    theirs = timm_swinv2(encoder, num_classes=10)
    theirs.load_state_dict(to_timm(ours.state_dict()))
    assert_equal(ours(images), theirs(images), FLOAT32, "timm")
    config = swinv2_config(encoder, num_labels=10)
    model = load_hugging_face(Swinv2ForImageClassification, config, ours.state_dict())
    assert_equal(ours(images), model(images).logits, FLOAT32, "Hugging Face")


@torch.no_grad()
def test_feature_pyramid_equals_timm() -> None:
    """timm leaves the last level without its norm; with it, both agree."""
    encoder = randomise(create_encoder("swinv2_t", image_size=128, window_size=8))
    theirs = timm.create_model("swinv2_tiny_window8_256", features_only=True, img_size=128).eval()
    weights = to_timm(encoder.state_dict())
    del weights["norm.weight"], weights["norm.bias"]
    theirs.load_state_dict({k.replace("layers.", "layers_", 1): v for k, v in weights.items()})
    images = draw_images(1, 3, 128, 128)
    levels = theirs(images)
    levels[-1] = encoder.norm(levels[-1])
    pyramid = encoder.feature_pyramid(images)
    assert torch.equal(pyramid[-1], encoder(images))
    for number, (level, their_level) in enumerate(zip(pyramid, levels, strict=True)):
        assert_equal(level, their_level.permute(0, 3, 1, 2), FLOAT32, f"level {number}")
