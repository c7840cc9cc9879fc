"""Losses and the gradient of every parameter, in float32, and in float64 to show what is rounding.

The gradients come over as the weights do, through the converters.
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SwinForMaskedImageModeling, Swinv2ForMaskedImageModeling

from simmim.checkpoints import from_hf, from_timm, to_timm
from simmim.models.classifier import Classifier
from simmim.models.losses import masked_l1
from simmim.models.masking import enlarge
from simmim.models.simmim import SimMIM
from simmim.models.swin import create_encoder

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
from .theirs import load_hugging_face, swin_config, swinv2_config, timm_swin, timm_swinv2

DTYPES = [torch.float32, torch.float64]


def loosest(dtype: torch.dtype, tolerance: float) -> float:
    """The tolerance of float32, or what float64 must reach whatever is compared."""
    return tolerance if dtype == torch.float32 else FLOAT64


def draw_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """In float64, some logit scales exceed the largest and are clamped."""
    randomise(model, largest_logit_scale=3.0 if dtype == torch.float32 else 5.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["swinv2_t", "swin_t"])
def test_simmim_equals_hugging_face(name: str, dtype: torch.dtype) -> None:
    # Hugging Face's V1 cannot take a window larger than a feature map.
    window_size = 4 if name == "swinv2_t" else 2
    ours = SimMIM(build(lambda: create_encoder(name, image_size=64, window_size=window_size)))
    draw_weights(ours, dtype)
    model: Any = Swinv2ForMaskedImageModeling
    config: Any = swinv2_config(ours.encoder)
    if name == "swin_t":
        model, config = SwinForMaskedImageModeling, swin_config(ours.encoder)
    theirs = load_hugging_face(model, config, ours.state_dict()).to(dtype)
    ours.to(dtype)
    mask = draw_mask(2, 16, 16)
    with in_double() if dtype == torch.float64 else nullcontext():
        images = draw_images(2, 3, 64, 64).to(dtype)
        images = move_targets_off(ours(images, mask), images, mask)
        prediction = ours(images, mask)
        loss = masked_l1(prediction, images, enlarge(mask, 4))
    loss.backward()
    their_output = theirs(images, bool_masked_pos=mask.flatten(1))
    their_output.loss.backward()

    assert_equal(prediction, their_output.reconstruction, loosest(dtype, FLOAT32))
    assert_equal(loss, their_output.loss, loosest(dtype, LOSS), "loss")
    assert_gradients_equal(ours, from_hf(gradients_of(theirs)), loosest(dtype, GRADIENT))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["swinv2_t", "swin_t"])
def test_classifier_equals_timm(name: str, dtype: torch.dtype) -> None:
    """The last stage has one row: its window is 1 × 2, with no vertical offset but zero."""
    encoder = build(lambda: create_encoder(name, image_size=(32, 64), window_size=4))
    ours = Classifier(encoder, 10)
    draw_weights(ours, dtype)
    theirs: nn.Module = timm_swin(encoder, num_classes=10)
    if name == "swinv2_t":
        theirs = timm_swinv2(encoder, num_classes=10)
    theirs.load_state_dict(to_timm(ours.state_dict()))
    theirs.to(dtype)
    ours.to(dtype)
    images = draw_images(2, 3, 32, 64).to(dtype)
    labels = torch.tensor([3, 7])

    their_loss = cross_entropy(theirs(images), labels)
    with in_double() if dtype == torch.float64 else nullcontext():
        loss = cross_entropy(ours(images), labels)

    assert_equal(loss, their_loss, loosest(dtype, FLOAT32), "loss")
    assert_gradients_equal(ours, from_timm(gradients_of(theirs)), loosest(dtype, GRADIENT))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    return loss
