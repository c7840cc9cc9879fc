"""Whole models from their files: a pretraining checkpoint with the head that it was trained with."""

from pathlib import Path

import pytest
import torch

from simmim.checkpoints import to_official
from simmim.checkpoints.metadata import describe_encoder
from simmim.checkpoints.model_file import load_trained
from simmim.models.heads import HeadKind
from simmim.models.simmim import SimMIM
from simmim.models.swin import create_encoder
from simmim.utils.errors import UserError
from simmim.utils.normalization import Normalisation


def create(head: HeadKind) -> SimMIM:
    encoder = create_encoder("swinv2_nano", image_size=32, window_size=4, depths=(2, 1))
    return SimMIM(encoder, head).eval()


@pytest.mark.parametrize("head", ["linear", "mlp", "inverse_swin"])
@torch.no_grad()
def test_a_checkpoint_comes_back_with_its_own_head(tmp_path: Path, head: HeadKind) -> None:
    ours = create(head)
    for parameter in ours.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    checkpoint = {
        "state_dict": {f"model.{name}": value for name, value in ours.state_dict().items()},
        "encoder": describe_encoder(ours.encoder, Normalisation()),
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    again = load_trained(tmp_path / "last.ckpt").model
    assert isinstance(again, SimMIM)
    assert again.head_kind == head
    images, mask = torch.randn(2, 3, 32, 32), torch.rand(2, 4, 4) < 0.5
    assert torch.equal(again(images, mask), ours(images, mask))


def test_a_part_of_a_head_is_refused(tmp_path: Path) -> None:
    ours = create("inverse_swin")
    weights = {f"model.{name}": value for name, value in ours.state_dict().items()}
    del weights["model.head.norm.weight"]
    description = describe_encoder(ours.encoder, Normalisation())
    torch.save({"state_dict": weights, "encoder": description}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"last.ckpt holds .* \(missing: head.norm.weight"):
        load_trained(tmp_path / "last.ckpt")


@pytest.mark.parametrize("head", ["mlp", "inverse_swin"])
def test_a_deeper_head_does_not_pass_for_the_official_one(head: HeadKind) -> None:
    ours = create(head).state_dict()
    theirs = to_official(ours)
    assert not any(name.startswith("decoder") for name in theirs)
    # What has no other name passes as it is.
    own = {name for name in ours if name.startswith("head.")}
    assert own and own <= theirs.keys()
