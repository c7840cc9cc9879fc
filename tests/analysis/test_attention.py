"""Attention weights against the modules' own outputs; maps and distances against plain definitions."""

import pytest
import torch
from torch import nn

from simmim.analysis import attention_distances, attention_maps
from simmim.analysis.attention import attention_weights, token_places
from simmim.models.swin import create_encoder
from simmim.models.swin.attention import WindowAttention
from simmim.models.swin.hooks import named_blocks
from simmim.models.swin.windows import WindowGrid, attention_mask, merge_windows, partition_windows
from simmim.utils.errors import UserError

# Whole windows, shifted ones, padded ones, both; one that pads in one axis alone.
GRIDS = [
    WindowGrid((8, 8), (4, 4), (0, 0)),
    WindowGrid((8, 8), (4, 4), (2, 2)),
    WindowGrid((6, 7), (4, 4), (0, 0)),
    WindowGrid((6, 7), (4, 4), (2, 2)),
    WindowGrid((8, 5), (4, 5), (2, 0)),
]


def random_encoder(name: str = "swinv2_t", image_size=(32, 48), window_size=4):
    torch.manual_seed(0)
    encoder = create_encoder(
        name,
        image_size=image_size,
        window_size=window_size,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
    )
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    return encoder


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_weights_sum_to_one_and_give_what_the_module_gives(grid, similarity):
    torch.manual_seed(0)
    module = WindowAttention(16, 2, grid.window_size, grid.window_size, similarity=similarity)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    windows = partition_windows(torch.randn(3, *grid.feature_size, 16), grid)
    mask = attention_mask(grid)
    with torch.no_grad():
        weights = attention_weights(module, windows, mask)
        expected = module(windows, mask)
        value = nn.functional.linear(windows, module.qkv.weight[32:], module.v_bias)
        by_head = value.unflatten(-1, (2, 8)).transpose(2, 3)
        attended = module.projection((weights @ by_head).transpose(2, 3).flatten(3))
    assert torch.allclose(weights.sum(dim=-1), torch.ones(()), atol=1e-6)
    assert torch.allclose(attended, expected, atol=1e-5)
    if mask is not None:
        assert (weights.masked_select(mask.unsqueeze(1)) == 0).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_token_has_one_place(grid):
    places = token_places(grid)
    real = places[places >= 0]
    assert sorted(real.tolist()) == list(range(grid.feature_size[0] * grid.feature_size[1]))
    # The tokens that merging puts back are those that the places name.
    laid_out = merge_windows(places.float()[None, :, :, None], grid)[0, :, :, 0]
    assert laid_out.flatten().tolist() == list(range(real.numel()))


def plain_distances(encoder, images) -> list[list[float]]:
    """By the whole matrix of each block's attention between all tokens of the map."""
    found = []
    features = encoder.embed(images)
    for stage, stride in zip(encoder.stages, encoder.strides, strict=True):
        features = stage.merging(features)
        for block in stage.blocks:
            rows, columns = features.shape[1:3]
            seen = block.norm1(features) if block.pre_norm else features
            grid = block.grid._replace(feature_size=(rows, columns))
            mask = attention_mask(grid)
            weights = attention_weights(block.attention, partition_windows(seen, grid), mask)
            sums = torch.zeros(block.attention.num_heads)
            places = token_places(grid).tolist()
            for window, numbers in enumerate(places):
                for query, mine in enumerate(numbers):
                    for key, its in enumerate(numbers):
                        if min(mine, its) >= 0:
                            down = mine // columns - its // columns
                            right = mine % columns - its % columns
                            apart = (down**2 + right**2) ** 0.5
                            sums += weights[:, window, :, query, key].sum(dim=0) * apart
            found.append((sums * stride / (len(images) * rows * columns)).tolist())
            features = block(features)
    return found


@pytest.mark.parametrize("image_size", [(32, 48), (24, 40)])
@pytest.mark.parametrize("name", ["swinv2_t", "swin_t"])
def test_distances_are_those_of_the_whole_matrix(name, image_size):
    # The second size is another than the encoder was built for, and needs padding.
    encoder = random_encoder(name)
    images = torch.randn(2, 3, *image_size)
    found = attention_distances(encoder, images)
    with torch.no_grad():
        expected = plain_distances(encoder, images)
    assert [block.name for block in found] == list(named_blocks(encoder))
    for block, heads in zip(found, expected, strict=True):
        assert block.heads.tolist() == pytest.approx(heads, rel=1e-4)


def test_equal_attention_has_the_distance_that_geometry_says():
    encoder = random_encoder(image_size=32)
    for block in named_blocks(encoder).values():
        nn.init.zeros_(block.attention.qkv.weight)
        nn.init.zeros_(block.attention.q_bias)
        # The network's bias is then 8 everywhere.
        nn.init.zeros_(block.attention.position_bias.mlp[2].weight)
    first, *others = attention_distances(encoder, torch.randn(1, 3, 32, 32))
    grid = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    geometric = 4 * float((grid[:, None] - grid[None]).norm(dim=-1).mean())
    assert first.uniform == pytest.approx(geometric, rel=1e-5)
    for block in (first, *others):
        assert block.heads.tolist() == pytest.approx([block.uniform] * len(block.heads), rel=1e-4)
    # A shifted window's pieces at the border hold fewer tokens.
    assert others[0].uniform < first.uniform


@pytest.mark.parametrize("query", [(0, 0), (17, 30), (31, 47)])
def test_a_map_is_the_row_of_its_token(query):
    encoder = random_encoder()
    images = torch.randn(2, 3, 32, 48)
    maps = attention_maps(encoder, images, query)
    assert [tuple(block.weights.shape) for block in maps] == [
        *[(2, 2, 8, 12)] * 2,
        *[(2, 4, 4, 6)] * 2,
    ]
    for block in maps:
        assert torch.allclose(block.weights.sum(dim=(2, 3)), torch.ones(()), atol=1e-5)
    # In the first block, whose input is the embedding: the window's own row, nothing elsewhere.
    block = named_blocks(encoder)["stage1_block1"]
    with torch.no_grad():
        windows = partition_windows(encoder.embed(images), block.grid)
        weights = attention_weights(block.attention, windows)
    row, column = query[0] // 4, query[1] // 4
    window, token = row // 4 * 3 + column // 4, row % 4 * 4 + column % 4
    top, left = row // 4 * 4, column // 4 * 4
    own = maps[0].weights[:, :, top : top + 4, left : left + 4].flatten(2)
    assert torch.allclose(own, weights[:, window, :, token], atol=1e-6)
    assert maps[0].weights.sum() == pytest.approx(float(own.sum()), rel=1e-5)


def test_a_query_outside_is_named():
    with pytest.raises(UserError, match=r"query \[32, 0\] is outside images of 32×48 pixels"):
        attention_maps(random_encoder(), torch.randn(1, 3, 32, 48), (32, 0))
