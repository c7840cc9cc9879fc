"""Files for `timm.create_model`: every size that timm can be, and a reason for what it cannot."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from parity.compare import FLOAT32, assert_equal, randomise
from safetensors import safe_open

import simmim
from simmim.checkpoints.model_file import TrainedModel
from simmim.export.timm import named_models, save_timm, timm_arguments
from simmim.models.classifier import Classifier
from simmim.models.simmim import SimMIM
from simmim.models.swin import SwinTransformer
from simmim.utils.errors import UserError
from simmim.utils.normalization import Normalisation

SMALL = {"image_size": 64, "window_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [1, 2]}


def create(name: str = "swinv2_t", **changes: Any) -> SwinTransformer:
    return simmim.create_encoder(name, **(SMALL | changes))


@pytest.mark.parametrize("name", [*named_models("swin"), *named_models("swinv2")])
def test_a_name_stands_for_what_timm_builds(name):
    """Differs from no argument, and the weights' names and shapes are those of our encoder."""
    family: Any = name.partition("_")[0]
    expected = named_models(family)[name]
    with torch.device("meta"):
        theirs = timm.create_model(name)
        given = timm.create_model(name, **expected)
    assert describe(theirs) == describe(given)


def describe(model: Any) -> Any:
    """All that a size decides: shapes, and the windows that derived tables depend on."""
    blocks = [block for stage in model.layers for block in stage.blocks]
    windows = [
        (block.window_size, block.shift_size, getattr(block.attn, "pretrained_window_size", None))
        for block in blocks
    ]
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return model.patch_embed.img_size, windows, shapes


@pytest.mark.parametrize(
    ("name", "sizes", "expected"),
    [
        ("swinv2_t", {"image_size": 256, "window_size": 8}, "swinv2_tiny_window8_256"),
        ("swinv2_s", {"image_size": 256, "window_size": 16}, "swinv2_small_window16_256"),
        ("swinv2_b", {"image_size": 256, "window_size": 8}, "swinv2_base_window8_256"),
        (
            "swinv2_l",
            {
                "image_size": 384,
                "window_size": 24,
                "pretrained_window_sizes": (12, 12, 12, 6),
            },
            "swinv2_large_window12to24_192to384",
        ),
        ("swin_b", {"image_size": 384, "window_size": 12}, "swin_base_patch4_window12_384"),
    ],
)
def test_a_published_size_has_its_name_alone(name, sizes, expected):
    with torch.device("meta"):
        model = Classifier(simmim.create_encoder(name, **sizes), 1000)
    assert timm_arguments(TrainedModel(model, (), Normalisation())) == (expected, {})


@pytest.mark.parametrize(
    "encoder",
    [
        {},
        {"window_size": (2, 4)},
        {"image_size": (32, 64)},
        {"pretrained_window_sizes": [3, (6, 2)]},
        {"patch_size": 8, "in_channels": 5},
        {"depths": [1], "num_heads": [2]},
        {"depths": [1, 1, 1, 1, 1], "num_heads": [1, 1, 1, 2, 4]},
        {"name": "swin_t"},
        {"name": "swin_t", "window_size": 16, "image_size": (32, 64)},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["encoder", "classifier", "simmim"])
@torch.no_grad()
def test_timm_computes_the_same(tmp_path, encoder, kind):
    ours: Any = create(**encoder)
    if kind != "encoder":
        ours = Classifier(ours, 5) if kind == "classifier" else SimMIM(ours)
    trained = TrainedModel(randomise(ours), (), Normalisation())
    theirs = eval(save_timm(trained, tmp_path / "timm.safetensors"), {"timm": timm}).eval()
    images = torch.randn(2, trained.encoder.in_channels, *trained.encoder.image_size)
    if kind == "classifier":
        actual, expected = theirs(images), ours(images)
    else:
        actual = theirs.forward_features(images).permute(0, 3, 1, 2)
        expected = trained.encoder(images)
    assert_equal(actual, expected, FLOAT32)


def test_classes_and_normalisation_go_along(tmp_path: Path):
    normalisation = Normalisation((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    trained = TrainedModel(Classifier(create(), 2), ("cat", "dog"), normalisation)
    line = save_timm(trained, tmp_path / "timm.safetensors")
    config = timm.data.resolve_model_data_config(eval(line, {"timm": timm}))
    assert config["mean"] == (0.5, 0.5, 0.5)
    assert config["std"] == (0.2, 0.2, 0.2)
    with safe_open(tmp_path / "timm.safetensors", "pt") as file:
        assert '"classes": ["cat", "dog"]' in file.metadata()["timm"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"main_branch_norm_every": 2}, r"no norms on the main branch .*every=2.*swinv2_h"),
        ({"position_bias": "linear_cpb"}, r"no Swin with res_post, cosine, linear_cpb, but swin"),
        ({"norm": "pre"}, r"no Swin with pre, cosine, log_cpb.*use format=safetensors or"),
        ({"name": "swin_t", "similarity": "cosine"}, r"no Swin with pre, cosine, table"),
        ({"window_size": 3}, r"window 3 does not divide the feature map 16"),
    ],
)
def test_what_timm_cannot_express_is_refused(tmp_path, changes, message):
    trained = TrainedModel(create(**changes), (), Normalisation())
    with pytest.raises(UserError, match=f"timm.*{message}"):
        save_timm(trained, tmp_path / "timm.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_extra_norm_that_no_block_has_is_none(tmp_path):
    encoder = create(main_branch_norm_every=6)
    save_timm(TrainedModel(encoder, (), Normalisation()), tmp_path / "timm.safetensors")
    with safe_open(tmp_path / "timm.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert names
    assert not any("norm3" in name for name in names)
