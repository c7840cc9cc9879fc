"""What other programs put around a model and before its names is taken away."""

import argparse
import logging
import pathlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import simmim
from simmim.checkpoints import to_hf, to_official, to_timm
from simmim.checkpoints.read import read_weights
from simmim.models.simmim import SimMIM
from simmim.models.swin import SwinTransformer
from simmim.utils.errors import UserError

Weights = dict[str, Tensor]


def tiny() -> SwinTransformer:
    arguments = {"image_size": 32, "window_size": 4, "embed_dim": 32, "depths": [2, 1]}
    return simmim.create_encoder("swinv2_t", num_heads=[1, 2], **arguments)


ENCODER = tiny()
WRITERS: dict[str, Callable[[Weights], Weights]] = {
    "official": to_official,
    "timm": to_timm,
    "Hugging Face": to_hf,
    "simmim": dict,
}


def written(writer: str) -> Weights:
    return WRITERS[writer](dict(ENCODER.state_dict()))


def assert_reads(content: Any, origin: str, path: Path) -> None:
    torch.save(content, path)
    weights = read_weights(path)
    assert weights.origin == origin
    own = ENCODER.state_dict()
    assert weights.encoder.keys() == own.keys()
    assert all(torch.equal(weights.encoder[name], own[name]) for name in own)


PREFIXES = [
    *("", "module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.", "student."),
    *("teacher.", "module._orig_mod.", "model._orig_mod.", "_orig_mod.module.backbone."),
    "_fsdp_wrapped_module.model.encoder.",
]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_is_taken_away(writer: str, prefix: str, tmp_path: Path) -> None:
    content = {prefix + name: tensor for name, tensor in written(writer).items()}
    assert_reads({"state_dict": content, "epoch": 3}, writer, tmp_path / "a.pth")


@pytest.mark.parametrize("writer", WRITERS)
def test_wrappers_within_names_are_taken_away(writer: str, tmp_path: Path) -> None:
    """As of blocks that are compiled, or recomputed, one by one."""
    content = {
        f"model.{name}".replace("blocks.0.", "blocks.0._orig_mod.").replace(
            "blocks.1.", "blocks.1._checkpoint_wrapped_module."
        ): tensor
        for name, tensor in written(writer).items()
    }
    assert any("_orig_mod" in name for name in content)
    assert_reads(content, writer, tmp_path / "a.pth")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"state_dict_ema": w, "epoch": 1, "args": argparse.Namespace(lr=1)},
        lambda w: {"state_dict": {k: t + 1 for k, t in w.items()}, "state_dict_ema": w},
        lambda w: {"model": {k: t + 1 for k, t in w.items()}, "model_ema": w},
        lambda w: {"model": w, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
        lambda w: {
            "state_dict": {f"net.{k}": t for k, t in w.items()} | {"loss.weight": torch.ones(2)},
            "hyper_parameters": {"lr": 0.1, "data": argparse.Namespace(root=Path("data"))},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        },
        lambda w: {"teacher": {f"module.backbone.{k}": t for k, t in w.items()}, "center": 0},
        lambda w: {"model": {"depth": 3}, "state_dict": w},
    ],
)
def test_what_programs_write_beside_weights_is_no_hindrance(
    wrap: Callable[[Weights], Any], tmp_path: Path
) -> None:
    assert_reads(wrap(written("timm")), "timm", tmp_path / "a.pth")


def test_paths_are_read_as_python_3_13_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pathlib._local", pathlib)
        patch.setattr(type(tmp_path), "__module__", "pathlib._local")
        content = {"state_dict": written("timm"), "root": Path("data")}
        torch.save(content, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth").origin == "timm"


def test_an_average_of_weights_keeps_its_names(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(ENCODER)
    assert_reads(averaged.state_dict(), "simmim", tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("one", "other"), [("student.", "teacher."), ("encoder.", "momentum_encoder.")]
)
def test_of_two_models_none_is_taken(one: str, other: str, tmp_path: Path) -> None:
    weights = written("timm")
    flat = {prefix + name: tensor for prefix in (one, other) for name, tensor in weights.items()}
    nested = {one.strip("."): weights, other.strip("."): weights}
    for content in (flat, {"state_dict": flat}, nested):
        torch.save(content, tmp_path / "two.pth")
        with pytest.raises(UserError, match=rf"^\S*two.pth holds 2 models, under .*{other}.*$"):
            read_weights(tmp_path / "two.pth")


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    weights = written("timm")
    name = next(iter(weights))
    torch.save({**weights, f"module.{name}": weights[name]}, tmp_path / "twice.pth")
    with pytest.raises(UserError, match=f"two tensors for {name}"):
        read_weights(tmp_path / "twice.pth")


def test_heads_of_other_models_are_left_out_and_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = {f"backbone.{name}": tensor for name, tensor in written("official").items()}
    content |= {"head.weight": torch.zeros(5, 64), "head.bias": torch.zeros(5)}
    with caplog.at_level(logging.INFO):
        assert_reads(content, "official", tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth").num_classes is None
    assert "'backbone.'; 2 other tensors are left out (head.weight, head.bias)" in caplog.text


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
@pytest.mark.parametrize("writer", ["official", "Hugging Face", "simmim"])
def test_whole_models_keep_their_heads(writer: str, prefix: str, tmp_path: Path) -> None:
    own = dict(SimMIM(tiny()).state_dict())
    content = {prefix + name: tensor for name, tensor in WRITERS[writer](own).items()}
    torch.save(content, tmp_path / "a.pth")
    weights = read_weights(tmp_path / "a.pth")
    assert weights.tensors.keys() == own.keys()
    assert all(torch.equal(weights.tensors[name], own[name]) for name in own)


def test_our_own_names_under_a_program_of_the_users(tmp_path: Path) -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = ENCODER
            self.boxes = nn.Linear(3, 3)

    assert_reads(torch.compile(Detector()).state_dict(), "simmim", tmp_path / "a.pth")
