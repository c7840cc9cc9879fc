"""Position bias and logit scale read from weights, against what the modules compute at any window."""

import pytest
import torch
from torch import nn

from simmim.analysis.position_bias import describe_attention, position_biases
from simmim.checkpoints.load import load_encoder_weights
from simmim.checkpoints.metadata import describe_encoder
from simmim.models.swin import adapt_encoder, create_encoder
from simmim.models.swin.attention import WindowAttention
from simmim.utils.errors import UserError
from simmim.utils.normalization import Normalisation


@pytest.mark.parametrize("kind", ["log_cpb", "linear_cpb", "table"])
def test_the_bias_of_every_offset_is_what_the_module_adds(kind):
    encoder = create_encoder(
        "swinv2_t",
        image_size=32,
        window_size=4,
        embed_dim=16,
        depths=(1, 2),
        num_heads=(1, 2),
        position_bias=kind,
    )
    for parameter in encoder.parameters():
        nn.init.normal_(parameter)
    described = describe_encoder(encoder, Normalisation())
    blocks = describe_attention(
        encoder.state_dict(), described["arguments"], described["window_sizes"]
    )
    assert [(block.stage, block.block) for block in blocks] == [(0, 0), (1, 0), (1, 1)]
    modules = [part for part in encoder.modules() if isinstance(part, WindowAttention)]
    for block, module in zip(blocks, modules, strict=True):
        heads, rows, columns = block.bias.shape
        assert (rows, columns) == (7, 7)
        flat = block.bias.reshape(heads, -1)
        assert torch.allclose(flat[:, module.position_bias.index], module.position_bias())
        assert block.scale is not None
        assert torch.allclose(block.scale, module.logit_scale.clamp(max=4.6052).exp(), rtol=1e-4)


@pytest.mark.parametrize("kind", ["log_cpb", "linear_cpb", "table"])
def test_at_a_larger_window_it_is_that_of_an_encoder_transferred_to_it(kind):
    encoder = create_encoder(
        "swinv2_t",
        image_size=(32, 48),
        window_size=(4, 6),
        embed_dim=16,
        depths=(1, 1),
        num_heads=(1, 2),
        position_bias=kind,
    )
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.1)
    windows = encoder.window_sizes
    larger = adapt_encoder(encoder.arguments, image_size=(48, 72), window_size=(6, 9))
    load_encoder_weights(larger, encoder.state_dict(), source="here", window_sizes=windows)
    modules = [part for part in larger.modules() if isinstance(part, WindowAttention)]
    for block, module in zip(position_biases(encoder, 1.5), modules, strict=True):
        assert tuple(block.bias.shape[1:]) == (11, 17)
        by_pair = block.bias.flatten(1)[:, module.position_bias.index]
        assert torch.allclose(by_pair, module.position_bias(), atol=1e-5)


def test_windows_of_no_size_are_named():
    encoder = create_encoder("swinv2_nano")
    with pytest.raises(UserError, match="scale 0 is not positive"):
        position_biases(encoder, 0)
