"""Amplitudes by depth, against a forward pass written out by hand."""

import pytest
import torch
from torch import nn

from simmim.analysis import activation_amplitudes, amplitude_ratio
from simmim.models.swin import create_encoder
from simmim.models.swin.blocks import Stage


def small(norm: str, **arguments):
    torch.manual_seed(0)
    encoder = create_encoder(
        "swinv2_t",
        image_size=32,
        window_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(1, 2),
        norm=norm,
        **arguments,
    )
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return encoder


def variance(features: torch.Tensor) -> float:
    return float(features.flatten(0, 2).var(dim=0, correction=0).mean())


@pytest.mark.parametrize("norm", ["pre", "res_post"])
def test_amplitudes_are_those_of_a_forward_pass_by_hand(norm):
    encoder = small(norm, main_branch_norm_every=2, drop_path_rate=0.5)
    images = torch.randn(3, 3, 32, 32)
    expected = []
    with torch.no_grad():
        features = encoder.embed(images)
        for stage in encoder.stages:
            assert isinstance(stage, Stage)
            features = stage.merging(features)
            for block in stage.blocks:
                if norm == "pre":
                    attention = block.attend(block.norm1(features))
                    mlp = block.mlp(block.norm2(features + attention))
                else:
                    attention = block.norm1(block.attend(features))
                    mlp = block.norm2(block.mlp(features + attention))
                features = block.norm3(features + attention + mlp)
                expected.append((variance(features), variance(attention), variance(mlp)))
    # An encoder in training drops paths at random; what is looked at is its evaluation.
    found = activation_amplitudes(encoder.train(), images)
    assert [block.name for block in found] == [
        *("stage1_block1", "stage1_block2", "stage2_block1", "stage2_block2")
    ]
    assert torch.allclose(
        torch.tensor([block[1:] for block in found]), torch.tensor(expected), rtol=1e-4
    )
    outputs = [output for output, _, _ in expected]
    assert amplitude_ratio(found) == pytest.approx(max(outputs) / min(outputs), rel=1e-4)
    assert all(module.training for module in encoder.modules())
    assert not any(module._forward_hooks for module in encoder.modules())


def test_an_encoder_stays_in_the_modes_that_it_was_in():
    encoder = small("res_post").train()
    encoder.stages[0].eval()
    before = [module.training for module in encoder.modules()]
    activation_amplitudes(encoder, torch.randn(1, 3, 32, 32))
    assert [module.training for module in encoder.modules()] == before
