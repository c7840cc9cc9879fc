"""Swin V1 encoders and classifiers against timm and Hugging Face."""

import pytest
import torch
from transformers import SwinForImageClassification, SwinModel

from simmim.checkpoints import from_hf, from_timm, to_timm
from simmim.models.classifier import Classifier
from simmim.models.swin import create_encoder

from .compare import FLOAT32, assert_equal, build, draw_images, randomise
from .theirs import load_hugging_face, swin_config, timm_swin


@torch.no_grad()
def test_logits_equal() -> None:
    encoder = build(lambda: create_encoder("swin_t", image_size=224, window_size=7))
    ours = randomise(Classifier(encoder, 10))
    images = draw_images(1, 3, 224, 224)
    logits = ours(images)
    theirs = timm_swin(encoder, num_classes=10)
    theirs.load_state_dict(to_timm(ours.state_dict()))
    assert_equal(logits, theirs(images), FLOAT32, "timm")
    config = swin_config(encoder, num_labels=10)
    model = load_hugging_face(SwinForImageClassification, config, ours.state_dict())
    assert_equal(logits, model(images).logits, FLOAT32, "Hugging Face")


@pytest.mark.parametrize(
    ("image_size", "window_size"), [((192, 192), (6, 6)), ((256, 128), (8, 8))], ids=str
)
@torch.no_grad()
def test_timm_weights_load_into_ours(
    image_size: tuple[int, int], window_size: tuple[int, int]
) -> None:
    encoder = build(
        lambda: create_encoder("swin_t", image_size=image_size, window_size=window_size)
    )
    theirs = randomise(timm_swin(encoder))
    encoder.load_state_dict(from_timm(theirs.state_dict()))
    images = draw_images(1, 3, *image_size)
    assert_equal(encoder(images), theirs.forward_features(images).permute(0, 3, 1, 2), FLOAT32)


@torch.no_grad()
def test_hugging_face_weights_load_into_ours() -> None:
    """Under the names of their modules, which differ from those of their files."""
    encoder = build(lambda: create_encoder("swin_t", image_size=128, window_size=4))
    theirs = randomise(build(lambda: SwinModel(swin_config(encoder))))
    encoder.load_state_dict(from_hf(theirs.state_dict()))
    images = draw_images(1, 3, 128, 128)
    assert_equal(encoder(images).mean((2, 3)), theirs(images).pooler_output, FLOAT32)
