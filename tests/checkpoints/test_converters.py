"""Converters between our names and others': exact, complete, and loud about what they do not know.

That the names are right is shown with the other implementations themselves, in tests/parity.
"""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from simmim.checkpoints import from_hf, from_official, from_timm, to_hf, to_official, to_timm
from simmim.models.classifier import Classifier
from simmim.models.simmim import SimMIM
from simmim.models.swin import SwinTransformer, create_encoder
from simmim.utils.errors import UserError

Weights = dict[str, Tensor]
Converter = Callable[[Weights], Weights]

CONVERTERS = {
    "official": (to_official, from_official),
    "timm": (to_timm, from_timm),
    "hf": (to_hf, from_hf),
}
MODELS: dict[str, Callable[[SwinTransformer], nn.Module]] = {
    "encoder": lambda encoder: encoder,
    "classifier": lambda encoder: Classifier(encoder, 5),
    "simmim": SimMIM,
}
FROM = [from_official, from_timm, from_hf]
# timm has no SimMIM.
ROUND_TRIPS = [pair for pair in product(CONVERTERS, MODELS) if pair != ("timm", "simmim")]


def create_weights(model: str = "encoder", name: str = "swinv2_t") -> Weights:
    """Random weights of a small model; V2 with the extra norm of the largest encoders."""
    encoder = create_encoder(
        name,
        image_size=32,
        window_size=4,
        embed_dim=8,
        depths=(1, 2, 1),
        num_heads=(1, 2, 4),
        main_branch_norm_every=2 if name == "swinv2_t" else 0,
    )
    generator = torch.Generator().manual_seed(0)
    weights = MODELS[model](encoder).state_dict()
    return {key: torch.randn(value.shape, generator=generator) for key, value in weights.items()}


def assert_same(actual: Weights, expected: Weights) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize("name", ["swinv2_t", "swin_t"])
@pytest.mark.parametrize(("dialect", "model"), ROUND_TRIPS)
def test_round_trip_is_exact(dialect: str, model: str, name: str, tmp_path: Path) -> None:
    to_theirs, from_theirs = CONVERTERS[dialect]
    ours = create_weights(model, name)
    before = {key: value.clone() for key, value in ours.items()}
    theirs = to_theirs(ours)
    assert_same(from_theirs(theirs), ours)
    assert_same(to_theirs(from_theirs(theirs)), theirs)
    assert_same(ours, before)
    # Neither side shares memory between weights, which safetensors would refuse.
    save_file(theirs, tmp_path / "theirs.safetensors")
    save_file(from_theirs(theirs), tmp_path / "ours.safetensors")


@pytest.mark.parametrize("model", ["encoder", "classifier", "simmim"])
def test_official_names(model: str) -> None:
    prefix = "encoder." if model == "simmim" else ""
    theirs = to_official(create_weights(model))
    assert theirs[f"{prefix}layers.0.blocks.0.attn.logit_scale"].shape == (1, 1, 1)
    assert theirs[f"{prefix}layers.0.downsample.reduction.weight"].shape == (16, 32)
    assert f"{prefix}layers.1.blocks.1.norm3.weight" in theirs  # SatVision's
    assert ("head.weight" in theirs) == (model == "classifier")
    if model == "simmim":
        assert theirs["encoder.mask_token"].shape == (1, 1, 8)
        assert theirs["decoder.0.weight"].shape == (16 * 16 * 3, 32, 1, 1)


def test_v1_has_one_bias_for_queries_keys_and_values() -> None:
    ours = create_weights(name="swin_t")
    block = "stages.0.blocks.0.attention"
    expected = torch.cat([ours[f"{block}.{part}_bias"] for part in "qkv"])
    for theirs in (to_official(ours), to_timm(ours)):
        assert torch.equal(theirs["layers.0.blocks.0.attn.qkv.bias"], expected)


@pytest.mark.parametrize("model", ["classifier", "simmim"])
def test_older_official_files(model: str) -> None:
    """`rpe_mlp` instead of `cpb_mlp`, and derived tables."""
    ours = create_weights(model)
    theirs = {key.replace("cpb_mlp", "rpe_mlp"): v for key, v in to_official(ours).items()}
    prefix = "encoder." if model == "simmim" else ""
    for table in ("attn.relative_coords_table", "attn.relative_position_index", "attn_mask"):
        theirs[f"{prefix}layers.0.blocks.0.{table}"] = torch.ones(2)
    assert any("rpe_mlp" in key for key in theirs)
    assert_same(from_official(theirs), ours)


@pytest.mark.parametrize("model", ["encoder", "classifier"])
def test_older_timm_files(model: str) -> None:
    """Patch merging at the end of a stage and `head` for `head.fc`, as in the official files."""
    ours = create_weights(model)
    assert_same(from_timm(to_official(ours)), ours)


def test_prefix_without_head_gives_a_bare_encoder() -> None:
    ours = create_weights()
    official = {f"encoder.{key}": value for key, value in to_official(ours).items()}
    assert_same(from_official(official), ours)
    for prefix in ("swin.", "swinv2."):
        theirs = {f"{prefix}{key}": value for key, value in to_hf(ours).items()}
        assert_same(from_hf(theirs), ours)
    prefixed = {f"encoder.{key}": value for key, value in ours.items()}
    for to_theirs, _ in CONVERTERS.values():
        assert_same(to_theirs(prefixed), to_theirs(ours))


def test_hugging_face_prefixes() -> None:
    for name, prefix in (("swin_t", "swin."), ("swinv2_t", "swinv2.")):
        for model, head in (("classifier", "classifier."), ("simmim", "decoder.0.")):
            theirs = to_hf(create_weights(model, name))
            assert all(key.startswith((prefix, head)) for key in theirs)


def test_bare_hugging_face_encoder_with_mask_token() -> None:
    theirs = to_hf(create_weights()) | {"embeddings.mask_token": torch.ones(1, 1, 8)}
    ours = from_hf(theirs)
    assert ours.pop("mask_token").shape == (8,)
    assert all(key.startswith("encoder.") for key in ours)


@pytest.mark.parametrize("convert", [*FROM, to_official, to_timm, to_hf])
def test_unknown_names_pass_unchanged(convert: Converter) -> None:
    unknown = {
        key: torch.ones(1)
        for key in ("absolute_pos_embed", "layers.0.blocks.0.attn.scale", "encoder.strange")
    }
    assert_same(convert(unknown), unknown)


def test_part_of_a_joined_weight_passes_unchanged() -> None:
    theirs = to_hf(create_weights())
    block = "encoder.layers.0.blocks.0.attention.self"
    del theirs[f"{block}.key.weight"]
    ours = from_hf(theirs)
    assert f"{block}.query.weight" in ours
    assert "stages.0.blocks.0.attention.qkv.weight" not in ours


def test_two_names_for_one_weight_are_an_error() -> None:
    theirs = to_official(create_weights())
    name = "layers.0.blocks.0.attn.cpb_mlp.0.weight"
    theirs[name.replace("cpb_mlp", "rpe_mlp")] = theirs[name]
    with pytest.raises(UserError, match=r"two weights for stages\.0\.blocks\.0\..*rpe_mlp"):
        from_official(theirs)


def test_timm_gets_the_encoder_of_simmim() -> None:
    ours = create_weights("simmim")
    theirs = to_timm(ours)
    outside = {key: ours[key] for key in ("mask_token", "head.linear.weight", "head.linear.bias")}
    encoder = {key[8:]: value for key, value in ours.items() if key.startswith("encoder.")}
    assert_same(theirs, to_timm(encoder) | outside)
