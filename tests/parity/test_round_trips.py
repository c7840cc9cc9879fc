"""Our weights in their models and back, and theirs in ours: every tensor the same, every output near.

The windows divide all feature maps of 64 pixels, so that none is padded or, in V1, shrunk.
"""

from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from simmim.checkpoints import from_hf, from_official, from_timm, to_official, to_timm
from simmim.models.classifier import Classifier
from simmim.models.simmim import SimMIM
from simmim.models.swin import SwinTransformer, create_encoder

from .compare import FLOAT32, assert_equal, build, draw_images, draw_mask, randomise
from .test_official import DERIVED, Official, sizes
from .theirs import load_hugging_face, swin_config, swinv2_config, timm_swin, timm_swinv2

NAMES = ["swinv2_t", "swinv2_b", "swin_t", "swin_b"]
WINDOWS = {"swinv2": 4, "swin": 2}
MODELS: dict[str, Callable[[SwinTransformer], nn.Module]] = {
    "encoder": lambda encoder: encoder,
    "classifier": lambda encoder: Classifier(encoder, 10),
    "simmim": SimMIM,
}


def create(name: str, model: str) -> Any:
    window_size = WINDOWS[name.partition("_")[0]]
    return build(
        lambda: MODELS[model](create_encoder(name, image_size=64, window_size=window_size))
    )


def create_hugging_face(ours: nn.Module, config: Any) -> Any:
    kind = {Classifier: "ForImageClassification", SimMIM: "ForMaskedImageModeling"}
    family = "Swin" if config.model_type == "swin" else "Swinv2"
    cls = getattr(transformers, family + kind.get(type(ours), "Model"))
    return load_hugging_face(cls, config, ours.state_dict())


def encoder_of(ours: Any) -> SwinTransformer:
    return ours if isinstance(ours, SwinTransformer) else ours.encoder


def output(ours: Any) -> Tensor:
    images = draw_images(2, 3, 64, 64)
    return ours(images, draw_mask(2, 16, 16)) if isinstance(ours, SimMIM) else ours(images)


def hugging_face_output(theirs: Any, ours: nn.Module) -> Tensor:
    images = draw_images(2, 3, 64, 64)
    if isinstance(ours, SimMIM):
        mask = draw_mask(2, 16, 16).flatten(1)
        return theirs(images, bool_masked_pos=mask).reconstruction
    if isinstance(ours, Classifier):
        return theirs(images).logits
    return theirs(images).last_hidden_state.transpose(1, 2).unflatten(2, (2, 2))


def assert_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    actual, expected = (
        {name: value for name, value in weights.items() if not name.endswith(DERIVED)}
        for weights in (actual, expected)
    )
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("model", ["encoder", "classifier"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_timm(name: str, model: str) -> None:
    ours = randomise(create(name, model))
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    create_theirs = timm_swinv2 if name.startswith("swinv2") else timm_swin
    classes = 10 if model == "classifier" else 0
    theirs: Any = create_theirs(encoder_of(ours), num_classes=classes)

    def their_output() -> Tensor:
        images = draw_images(2, 3, 64, 64)
        if model == "classifier":
            return theirs(images)
        return theirs.forward_features(images).permute(0, 3, 1, 2)

    theirs.load_state_dict(to_timm(ours.state_dict()))
    assert_same(from_timm(theirs.state_dict()), before)
    assert_equal(output(ours), their_output(), FLOAT32, "our weights")
    randomise(theirs, seed=3)
    ours.load_state_dict(from_timm(theirs.state_dict()))
    assert_same(to_timm(ours.state_dict()), theirs.state_dict())
    assert_equal(output(ours), their_output(), FLOAT32, "their weights")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_hugging_face(name: str, model: str) -> None:
    ours = randomise(create(name, model))
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    create_config = swinv2_config if name.startswith("swinv2") else swin_config
    config: Any = create_config(encoder_of(ours), num_labels=10)
    theirs = create_hugging_face(ours, config)
    assert_same(from_hf(theirs.state_dict()), before)
    assert_equal(output(ours), hugging_face_output(theirs, ours), FLOAT32, "our weights")
    randomise(theirs, seed=3)
    ours.load_state_dict(from_hf(theirs.state_dict()))
    # V1's modules and files have other names: what was loaded is compared.
    assert_same(create_hugging_face(ours, config).state_dict(), theirs.state_dict())
    assert_equal(output(ours), hugging_face_output(theirs, ours), FLOAT32, "their weights")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_official(official: Official, name: str, model: str) -> None:
    ours = randomise(create(name, model))
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    theirs = create_official(official, ours, name)

    def their_output() -> Tensor:
        images = draw_images(2, 3, 64, 64)
        if model == "simmim":
            return theirs.decoder(theirs.encoder(images, draw_mask(2, 16, 16).long()))
        if model == "classifier":
            return theirs(images)
        return theirs.forward_features(images)

    # Their encoder alone gives the mean of its features.
    def our_output() -> Tensor:
        return output(ours).mean((2, 3)) if model == "encoder" else output(ours)

    theirs.load_state_dict(to_official(ours.state_dict()), strict=False)
    assert_same(from_official(theirs.state_dict()), before)
    assert_equal(our_output(), their_output(), FLOAT32, "our weights")
    randomise(theirs, seed=3)
    ours.load_state_dict(from_official(theirs.state_dict()))
    assert_same(to_official(ours.state_dict()), theirs.state_dict())
    assert_equal(our_output(), their_output(), FLOAT32, "their weights")


def create_official(official: Official, ours: nn.Module, name: str) -> Any:
    is_v2 = name.startswith("swinv2")
    arguments = sizes(encoder_of(ours)) | {"num_classes": 10 if isinstance(ours, Classifier) else 0}
    if not isinstance(ours, SimMIM):
        module = official("swin_transformer_v2" if is_v2 else "swin_transformer")
        cls = module.SwinTransformerV2 if is_v2 else module.SwinTransformer
        return build(lambda: cls(**arguments))
    module: ModuleType = official("simmim")
    cls = module.SwinTransformerV2ForSimMIM if is_v2 else module.SwinTransformerForSimMIM
    target = SimpleNamespace(NORM_TARGET=SimpleNamespace(ENABLE=False, PATCH_SIZE=47))
    return build(
        lambda: module.SimMIM(target, cls(**arguments), encoder_stride=32, in_chans=3, patch_size=4)
    )
