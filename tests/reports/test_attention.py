"""Position bias and logit scale read from weights, against what the modules compute."""

import pytest
import torch
from torch import nn

from simmim.checkpoints.description import describe_encoder
from simmim.encoder import create_encoder
from simmim.encoder.attention import WindowAttention
from simmim.normalisation import Normalisation
from simmim.reports.attention import describe_attention


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
