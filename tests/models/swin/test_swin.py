"""The encoder: shapes, windows, ablations, padding, initialisation, and building it again."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_encoders import TINY, awaken, tiny
from torch import nn

from simmim.models.swin import ARCHITECTURES, SwinTransformer, create_encoder
from simmim.models.swin.attention import WindowAttention
from simmim.models.swin.blocks import SwinBlock
from simmim.models.swin.patch_embed import PatchMerging
from simmim.models.swin.windows import WindowGrid, attention_mask, partition_windows


def blocks(encoder: SwinTransformer) -> Iterator[SwinBlock]:
    return (module for module in encoder.modules() if isinstance(module, SwinBlock))


@pytest.mark.parametrize("depths", [(1,), (2, 1), (1, 1, 2, 1)])
@pytest.mark.parametrize(("patch_size", "in_channels"), [(1, 1), (2, 3), (4, 5)])
def test_shapes_for_any_number_of_stages_patch_size_and_channels(
    depths: tuple[int, ...], patch_size: int, in_channels: int
) -> None:
    stages = len(depths)
    stride = patch_size * 2 ** (stages - 1)
    height, width = 2 * stride, 3 * stride
    encoder = tiny(
        depths=depths,
        num_heads=(2,) * stages,
        image_size=(height, width),
        patch_size=patch_size,
        in_channels=in_channels,
    )
    images = torch.randn(2, in_channels, height, width)
    pyramid = encoder.feature_pyramid(images)
    assert [tuple(level.shape) for level in pyramid] == [
        (2, 8 * 2**stage, height // patch_size // 2**stage, width // patch_size // 2**stage)
        for stage in range(stages)
    ]
    assert torch.equal(pyramid[-1], encoder(images))
    assert [tuple(level.shape[2:]) for level in pyramid] == list(encoder.feature_sizes)
    assert [level.shape[1] for level in pyramid] == list(encoder.channels)
    assert encoder.stride == encoder.strides[-1] == stride


def test_encode_of_embed_is_the_forward_with_channels_last() -> None:
    encoder, images = tiny(), torch.randn(1, 3, 16, 16)
    encoded = encoder.encode(encoder.embed(images))
    assert torch.equal(encoded.permute(0, 3, 1, 2), encoder(images))


@pytest.mark.parametrize(
    ("image_size", "window_size", "expected"),
    [
        (192, 12, [(12, 12), (12, 12), (12, 12), (6, 6)]),
        (224, 14, [(14, 14), (14, 14), (14, 14), (7, 7)]),
        ((192, 384), 12, [(12, 12), (12, 12), (12, 12), (6, 12)]),
        (256, (16, 8), [(16, 8), (16, 8), (16, 8), (8, 8)]),
    ],
)
def test_windows_shrink_to_the_map_by_stage_and_axis(
    image_size: int | tuple[int, int],
    window_size: int | tuple[int, int],
    expected: list[tuple[int, int]],
) -> None:
    with torch.device("meta"):
        encoder = create_encoder("swinv2_t", image_size=image_size, window_size=window_size)
    assert list(encoder.window_sizes) == expected
    assert list(encoder.pretrained_window_sizes) == expected


def test_every_other_block_shifts_by_half_a_window_where_the_map_is_larger() -> None:
    with torch.device("meta"):
        encoder = create_encoder("swinv2_t", image_size=192, window_size=12)
    shifts = [[block.grid.shift_size for block in stage.blocks] for stage in encoder.stages]
    assert shifts == [
        [(0, 0), (6, 6)],
        [(0, 0), (6, 6)],
        [(0, 0)] * 6,
        [(0, 0)] * 2,
    ]


@pytest.mark.parametrize("norm", ["res_post", "pre"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("position_bias", ["log_cpb", "linear_cpb", "table"])
def test_every_ablation_runs_and_trains_all_its_parameters(
    norm: str, similarity: str, position_bias: str
) -> None:
    encoder = tiny(
        norm=norm, similarity=similarity, position_bias=position_bias, main_branch_norm_every=2
    )
    output = encoder(torch.randn(2, 3, 16, 16))
    assert output.isfinite().all()
    (output * torch.randn_like(output)).sum().backward()
    # A bias of the keys shifts a query's logits all alike, and the softmax takes no notice.
    without = [
        name
        for name, parameter in encoder.named_parameters()
        if (parameter.grad is None or not parameter.grad.any()) and not name.endswith("k_bias")
    ]
    assert without == []


def test_the_ablations_differ_in_what_they_compute() -> None:
    images = torch.randn(1, 3, 16, 16)
    outputs = [
        tiny(**change)(images)
        for change in (
            {},
            {"norm": "pre"},
            {"similarity": "dot"},
            {"position_bias": "linear_cpb"},
            {"position_bias": "table"},
            {"main_branch_norm_every": 1},
            {"window_size": 4},
        )
    ]
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_main_branch_norm_comes_after_every_so_many_blocks_of_a_stage(every: int) -> None:
    encoder = SwinTransformer(**(TINY | {"depths": (4, 3), "main_branch_norm_every": every}))
    for stage, depth in zip(encoder.stages, (4, 3), strict=True):
        has_norm = [isinstance(block.norm3, nn.LayerNorm) for block in stage.blocks]
        assert has_norm == [number % every == 0 for number in range(1, depth + 1)]


def test_drop_path_grows_linearly_from_nothing_at_the_first_block() -> None:
    encoder = SwinTransformer(**(TINY | {"depths": (2, 3), "drop_path_rate": 0.2}))
    rates = [block.drop_path.rate for block in blocks(encoder)]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_a_map_of_another_size_gives_what_an_encoder_built_for_it_gives() -> None:
    # 2 tokens of window fit both maps, so that only masks and padding are made again.
    images = torch.randn(1, 3, 20, 28)
    built_for_it = tiny(image_size=(20, 28))
    assert torch.equal(tiny(image_size=16)(images), built_for_it(images))


def test_the_planned_size_still_works_after_another_one() -> None:
    encoder, images = tiny(), torch.randn(1, 3, 16, 16)
    before = encoder(images)
    encoder(torch.randn(1, 3, 24, 16))
    assert torch.equal(encoder(images), before)


@pytest.mark.parametrize("shift", [(0, 0), (1, 2)])
def test_padding_never_reaches_real_tokens(shift: tuple[int, int]) -> None:
    grid = WindowGrid((5, 7), (4, 4), shift)
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, (4, 4), (4, 4))
    windows = partition_windows(torch.randn(2, 5, 7, 8), grid)
    real = partition_windows(torch.ones(2, 5, 7, 8), grid).bool()
    noise = torch.where(real, windows, 100 * torch.randn_like(windows))
    mask = attention_mask(grid)
    clean, noisy = attention(windows, mask), attention(noise, mask)
    assert torch.equal(clean[real], noisy[real])
    assert not torch.allclose(clean[~real], noisy[~real])


def test_attention_on_a_padded_map_is_attention_on_the_map_alone() -> None:
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, (4, 4), (4, 4), position_bias="table")
    features = torch.randn(1, 3, 3, 8)
    grid = WindowGrid((3, 3), (4, 4), (0, 0))
    padded = attention(partition_windows(features, grid), attention_mask(grid))
    alone = WindowAttention(8, 2, (3, 3), (3, 3), position_bias="table")
    state = attention.state_dict()
    # A 3 × 3 window has the middle 5 × 5 of a 4 × 4 window's 7 × 7 offsets.
    table = state["position_bias.table"].view(7, 7, 2)[1:6, 1:6].reshape(25, 2)
    alone.load_state_dict(state | {"position_bias.table": table})
    real = padded.view(1, 4, 4, 8)[:, :3, :3].reshape(1, 1, 9, 8)
    torch.testing.assert_close(real, alone(features.view(1, 1, 9, 8)))


def attention_by_hand(attention: WindowAttention, window: torch.Tensor) -> torch.Tensor:
    """One window's attention, head by head, in float64."""
    state = {name: value.double() for name, value in attention.state_dict().items()}
    zeros = torch.zeros_like(state["q_bias"])
    bias = torch.cat((state["q_bias"], state.get("k_bias", zeros), state["v_bias"]))
    query, key, value = (window.double() @ state["qkv.weight"].T + bias).chunk(3, dim=-1)
    heads = []
    for head, columns in enumerate(torch.arange(window.shape[1]).chunk(attention.num_heads)):
        q, k = query[:, columns], key[:, columns]
        if attention.similarity == "cosine":
            factor = state["logit_scale"][head].exp().clamp(max=100)
            logits = factor * (q @ k.T) / (q.norm(dim=1)[:, None] * k.norm(dim=1)[None, :])
        else:
            logits = q @ k.T / len(columns) ** 0.5
        logits = logits + attention.position_bias()[head].double()
        heads.append(logits.softmax(dim=1) @ value[:, columns])
    return torch.cat(heads, dim=1) @ state["projection.weight"].T + state["projection.bias"]


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@torch.no_grad()
def test_attention_is_the_paper_s_formula(similarity: Any) -> None:
    torch.manual_seed(0)
    attention = WindowAttention(12, 3, (2, 3), (2, 3), similarity=similarity)
    for parameter in attention.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    if similarity == "cosine":
        attention.logit_scale[0] = 9.0  # held at a factor of 100
    windows = torch.randn(2, 4, 6, 12)
    expected = attention_by_hand(attention, windows[1, 2])
    torch.testing.assert_close(attention(windows)[1, 2].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["res_post", "pre"])
def test_merging_normalises_what_it_gives_in_v2_and_what_it_takes_in_v1(norm: Any) -> None:
    torch.manual_seed(0)
    merging, features = PatchMerging(3, norm), torch.randn(1, 2, 2, 3)
    # The published order: down the left column, then down the right.
    joined = torch.cat([features[0, y, x] for y, x in ((0, 0), (1, 0), (0, 1), (1, 1))])
    layers = (merging.norm, merging.reduction)
    for layer in layers if norm == "pre" else layers[::-1]:
        joined = layer(joined)
    torch.testing.assert_close(merging(features)[0, 0, 0], joined)


def test_tokens_of_different_windows_do_not_meet_without_a_shift() -> None:
    encoder = tiny(depths=(1,), num_heads=(2,))
    images = torch.randn(1, 3, 16, 16)
    changed = images.clone()
    changed[..., :4, :4] += 1  # the first window: 2 × 2 tokens of 2 px
    differs = (encoder(images) != encoder(changed)).any(dim=1)[0]
    assert differs[:2, :2].all()
    assert not differs[2:].any()
    assert not differs[:, 2:].any()


def test_a_shift_joins_neighbouring_windows_but_not_opposite_borders() -> None:
    encoder = tiny(depths=(2,), num_heads=(2,))
    images = torch.randn(1, 3, 16, 16)
    changed = images.clone()
    changed[..., :4, :4] += 1
    differs = (encoder(images) != encoder(changed)).any(dim=1)[0]
    assert differs[:3, :3].all()
    assert not differs[3:].any()
    assert not differs[:, 3:].any()


def test_res_post_blocks_start_as_the_identity() -> None:
    torch.manual_seed(0)
    encoder = SwinTransformer(**TINY)
    features = torch.randn(2, 8, 8, 8)
    block = next(blocks(encoder))
    assert torch.equal(block(features), features)


def test_pre_norm_blocks_do_not_start_as_the_identity() -> None:
    torch.manual_seed(0)
    encoder = SwinTransformer(**(TINY | {"norm": "pre"}))
    features = torch.randn(2, 8, 8, 8)
    assert not torch.equal(next(blocks(encoder))(features), features)


def test_linear_layers_start_with_a_deviation_of_two_hundredths_and_no_bias() -> None:
    torch.manual_seed(0)
    encoder = create_encoder("swinv2_nano", image_size=32, window_size=4)
    for module in encoder.modules():
        if isinstance(module, nn.Linear) and module.weight.numel() > 4000:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize("position_bias", ["log_cpb", "linear_cpb", "table"])
def test_the_state_dict_holds_parameters_alone(position_bias: str) -> None:
    # Windows with shift and padding: masks, indices and offsets all exist, and none is stored.
    encoder = tiny(image_size=24, window_size=5, position_bias=position_bias)
    assert any(block.mask is not None for block in blocks(encoder))
    assert set(encoder.state_dict()) == {name for name, _ in encoder.named_parameters()}


def test_the_arguments_rebuild_the_same_encoder() -> None:
    encoder = tiny(
        image_size=(16, 24),
        window_size=(2, 4),
        in_channels=5,
        pretrained_window_sizes=(3, (2, 5)),
        norm="pre",
        similarity="dot",
        position_bias="linear_cpb",
        main_branch_norm_every=2,
        mlp_ratio=2.0,
        drop_path_rate=0.1,
    )
    arguments = json.loads(json.dumps(encoder.arguments))
    rebuilt = SwinTransformer(**arguments).eval()
    assert rebuilt.arguments == encoder.arguments
    rebuilt.load_state_dict(encoder.state_dict())
    images = torch.randn(1, 5, 16, 24)
    assert torch.equal(rebuilt(images), encoder(images))


def test_the_arguments_name_all_that_an_encoder_takes_but_what_only_costs_time_or_memory() -> None:
    costs = {"attention_backend", "checkpoint_blocks", "sequential_attention"}
    taken = set(SwinTransformer.__init__.__annotations__) - {"return"} - costs
    assert set(SwinTransformer(**TINY).arguments) == taken


def test_pretrained_windows_change_the_output_of_a_continuous_bias() -> None:
    images = torch.randn(1, 3, 16, 16)
    same, other = tiny(), tiny(pretrained_window_sizes=(6, 6))
    assert other.pretrained_window_sizes == ((6, 6), (6, 6))
    assert not torch.allclose(same(images), other(images), atol=1e-4)


@pytest.mark.parametrize("name", ["swinv2_nano", "swinv2_h", "swin_b"])
def test_an_encoder_on_the_meta_device_allocates_nothing_and_knows_its_shapes(name: str) -> None:
    with torch.device("meta"):
        encoder = create_encoder(name, image_size=192, window_size=12)
    assert all(parameter.is_meta for parameter in encoder.parameters())
    output = encoder(torch.empty(1, 3, 192, 192, device="meta"))
    assert output.shape == (1, encoder.channels[-1], *encoder.feature_sizes[-1])


def test_a_published_name_s_arguments_can_each_be_replaced() -> None:
    encoder = create_encoder(
        "swinv2_nano",
        image_size=16,
        window_size=2,
        in_channels=1,
        patch_size=2,
        embed_dim=8,
        depths=(1, 1),
        num_heads=(1, 2),
        norm="pre",
        similarity="dot",
        position_bias="table",
        main_branch_norm_every=1,
        drop_path_rate=0.3,
    )
    expected = {
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "image_size": [16, 16],
        "window_size": [2, 2],
        "patch_size": 2,
        "in_channels": 1,
        "norm": "pre",
        "similarity": "dot",
        "position_bias": "table",
        "main_branch_norm_every": 1,
        "drop_path_rate": 0.3,
    }
    assert expected.items() <= encoder.arguments.items()


def test_every_published_encoder_has_heads_of_32_channels() -> None:
    for arguments in ARCHITECTURES.values():
        for stage, heads in enumerate(arguments["num_heads"]):
            assert arguments["embed_dim"] * 2**stage == 32 * heads


@pytest.mark.unchecked
@pytest.mark.slow
def test_the_compiled_encoder_is_one_graph_and_equals_the_eager_one() -> None:
    torch.manual_seed(0)
    # Maps of 16 and 8 tokens a side: shifts, padding, and a window that shrinks on one axis.
    encoder = awaken(
        create_encoder(
            "swinv2_nano", patch_size=4, depths=(2, 1), image_size=64, window_size=(6, 10)
        )
    )
    assert encoder.window_sizes == ((6, 10), (6, 8))
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    images = torch.randn(2, 3, 64, 64)

    def output_and_gradients(model: Any) -> list[torch.Tensor]:
        output = model(images)
        return [output, *torch.autograd.grad(output.square().mean(), list(encoder.parameters()))]

    eager = output_and_gradients(encoder)
    for one, other in zip(eager, output_and_gradients(compiled), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert all(gradient.any() for gradient in eager[1:])
