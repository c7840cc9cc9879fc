"""Files of weights, told apart by content; files that are none."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import simmim
from simmim.checkpoints import from_official, to_hf, to_official, to_timm
from simmim.checkpoints.load import adapt_channels, load_encoder_weights
from simmim.checkpoints.model_file import save_encoder
from simmim.checkpoints.read import read_weights
from simmim.models.swin import SwinTransformer
from simmim.models.swin.position_bias import resize_table
from simmim.utils.errors import UserError


def tiny(**changes) -> SwinTransformer:
    arguments = {"image_size": 32, "window_size": 4, "embed_dim": 32, "depths": [1, 1]}
    return simmim.create_encoder("swinv2_t", num_heads=[1, 2], **(arguments | changes))


def save(encoder: SwinTransformer, convert, path: Path) -> Path:
    weights = convert(dict(encoder.state_dict()))
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    else:
        torch.save({"model": weights, "epoch": 3}, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("convert", "origin"),
    [(to_official, "official"), (to_timm, "timm"), (to_hf, "Hugging Face")],
)
def test_weights_are_told_apart_by_content(tmp_path, convert, origin, suffix):
    encoder = tiny()
    weights = read_weights(save(encoder, convert, tmp_path / f"weights{suffix}"))
    assert weights.origin == origin
    assert weights.description is None
    own = encoder.state_dict()
    assert weights.encoder.keys() == own.keys()
    assert all(torch.equal(weights.encoder[name], own[name]) for name in own)


def test_satvision_opens_its_module_and_keeps_the_extra_norms(tmp_path):
    encoder = tiny(depths=[2, 2], main_branch_norm_every=2, in_channels=14)
    torch.save({"module": to_official(dict(encoder.state_dict()))}, tmp_path / "satvision.pt")
    weights = read_weights(tmp_path / "satvision.pt")
    other = tiny(depths=[2, 2], main_branch_norm_every=2, in_channels=14)
    coverage = load_encoder_weights(other, weights.encoder, source="satvision.pt")
    assert not coverage.missing
    assert not coverage.unexpected
    assert "stages.0.blocks.1.norm3.weight" in coverage.loaded


def test_a_missing_tensor_stops_and_is_named(tmp_path):
    encoder = tiny()
    tensors = dict(encoder.state_dict())
    del tensors["norm.weight"]
    with pytest.raises(UserError, match=r"lacks 1 of the encoder's \d+ tensors \(norm.weight\)"):
        load_encoder_weights(encoder, tensors, source="file")
    coverage = load_encoder_weights(encoder, tensors, source="file", strict=False)
    assert coverage.missing == ("norm.weight",)


def test_unexpected_tensors_are_reported_by_name():
    encoder = tiny()
    tensors = dict(encoder.state_dict()) | {"extra": torch.zeros(1)}
    coverage = load_encoder_weights(encoder, tensors, source="file")
    assert "1 unexpected (extra)" in str(coverage)


def test_other_input_channels_keep_the_scale_of_activations():
    kernel = torch.randn(32, 3, 4, 4)
    image = torch.rand(1, 1, 4, 4)
    grey = torch.nn.functional.conv2d(image, adapt_channels(kernel, 1))
    colour = torch.nn.functional.conv2d(image.expand(-1, 3, -1, -1), kernel)
    torch.testing.assert_close(grey, colour, atol=1e-5, rtol=1e-5)
    more = torch.nn.functional.conv2d(image.expand(-1, 6, -1, -1), adapt_channels(kernel, 6))
    torch.testing.assert_close(more, colour, atol=1e-5, rtol=1e-5)


def test_other_input_channels_load_and_are_reported():
    coverage = load_encoder_weights(tiny(in_channels=5), dict(tiny().state_dict()), source="file")
    assert coverage.reshaped == ("patch_embedding.projection.weight",)


def test_a_table_is_carried_to_another_window():
    changes = {"position_bias": "table", "similarity": "dot", "norm": "pre"}
    source, target = tiny(**changes), tiny(image_size=64, window_size=8, **changes)
    coverage = load_encoder_weights(target, dict(source.state_dict()), source="file")
    assert "stages.0.blocks.0.attention.position_bias.table" in coverage.reshaped
    constant = torch.full((49, 2), 3.0)
    assert torch.allclose(
        resize_table(constant, (4, 4), (8, 8)), torch.full((225, 2), 3.0), atol=1e-5
    )


def test_the_same_weights_give_the_same_bytes(tmp_path):
    """So that two runs can be compared by the checksums of their files."""
    encoder = tiny()
    for number in range(8):
        save_encoder(encoder, tmp_path / f"{number}.safetensors")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_code_in_a_pickle_does_not_run(tmp_path):
    witness = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (Path.touch, (witness,))

    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps({"model": Payload()}))
    torch.save({"model": Payload()}, tmp_path / "evil.pth")
    for name in ("evil.ckpt", "evil.pth"):
        with pytest.raises(UserError, match=name):
            read_weights(tmp_path / name)
    assert not witness.exists()


@pytest.mark.parametrize("keep", [0, 1, 7, 100, 5000])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_named(tmp_path, keep, suffix):
    whole = save(tiny(), to_official, tmp_path / f"whole{suffix}").read_bytes()
    broken = tmp_path / f"broken{suffix}"
    broken.write_bytes(whole[:keep])
    with pytest.raises(UserError, match="broken"):
        read_weights(broken)


def test_other_models_are_refused(tmp_path):
    torch.save({"state_dict": {"layer1.0.conv1.weight": torch.zeros(1)}}, tmp_path / "resnet.pth")
    with pytest.raises(UserError, match=r"no Swin Transformer.*layer1.0.conv1.weight"):
        read_weights(tmp_path / "resnet.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds a list"):
        read_weights(tmp_path / "list.pth")
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    with pytest.raises(UserError, match="holds no weights"):
        read_weights(tmp_path / "empty.pth")


def test_official_names_without_a_wrapper(tmp_path):
    encoder = tiny()
    torch.save(to_official(dict(encoder.state_dict())), tmp_path / "bare.pth")
    weights = read_weights(tmp_path / "bare.pth")
    assert weights.encoder.keys() == from_official(to_official(dict(encoder.state_dict()))).keys()


def test_a_foreign_file_does_not_rebuild_an_encoder(tmp_path):
    path = save(tiny(), to_timm, tmp_path / "timm.pth")
    with pytest.raises(UserError, match="does not say what model it holds"):
        simmim.load_encoder(path)


def test_a_smaller_encoder_does_not_pass_for_the_file(tmp_path):
    """A deeper file has all of its tensors, in the same shapes."""
    for larger in ({"depths": [1, 2]}, {"main_branch_norm_every": 1}):
        tensors = tiny(**larger).state_dict()
        with pytest.raises(UserError, match=r"holds \d+ tensors of blocks .* \(stages\.\d\.blocks"):
            load_encoder_weights(tiny(), tensors, source="file")
        coverage = load_encoder_weights(tiny(), tensors, source="file", strict=False)
        assert coverage.unexpected and not coverage.missing


def test_a_table_of_an_oblong_window_is_no_table_of_a_square_one(tmp_path):
    """Five by one tokens have nine offsets, as two by two have."""
    strip = simmim.create_encoder(
        "swin_t",
        **{"image_size": (32, 160), "window_size": (4, 5), "embed_dim": 32},
        **{"depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]},
    ).eval()
    assert strip.window_sizes[3] == (1, 5)
    for name, parameter in strip.named_parameters():
        if "table" in name:
            torch.nn.init.normal_(parameter)
    save_encoder(strip, tmp_path / "strip.safetensors")
    again = simmim.load_encoder(tmp_path / "strip.safetensors").state_dict()
    assert all(torch.equal(again[name], value) for name, value in strip.state_dict().items())


def test_a_bare_state_dict_has_our_names(tmp_path):
    encoder = tiny()
    torch.save(encoder.state_dict(), tmp_path / "bare.pth")
    weights = read_weights(tmp_path / "bare.pth")
    assert weights.origin == "simmim"
    assert weights.encoder.keys() == encoder.state_dict().keys()
