"""The Triton kernels against attention spelled out: on a GPU where there is one, else interpreted.

`test_triton_attention.py` runs this file in a process of its own: Triton's interpreter, which computes
on the CPU, has to be chosen before Triton is imported. It is slow: there are few programs.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from simmim.models.swin import SwinTransformer
from simmim.models.swin.attention import attend_reference
from simmim.models.swin.kernels.triton_attention import fused_attention
from simmim.models.swin.kernels.triton_launch import TUNED_TILES, Tile, choose_tile
from simmim.models.swin.windows import attention_mask, fit_window
from simmim.utils.sizes import Pair

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Case(NamedTuple):
    feature_size: Pair
    window_size: Pair
    shifted: bool
    heads: int
    head_dim: int
    is_cosine: bool = True
    images: int = 1
    tile: Tile | None = None
    dtype: torch.dtype = torch.float32


SMALL_TILE = Tile(16, 16, warps=4, stages=2)
CASES = {
    "no shift, several heads": Case((4, 4), (4, 4), False, 3, 16),
    "shifted": Case((4, 6), (4, 4), True, 1, 32),
    "dot product, images share a mask": Case((4, 8), (4, 4), True, 1, 16, False, images=2),
    "odd window, padding, several tiles": Case((5, 9), (5, 5), True, 1, 16, tile=SMALL_TILE),
    "dot product, padding": Case((3, 5), (3, 3), True, 1, 32, False),
    "head of 24, a window of two sides": Case((6, 3), (6, 3), False, 2, 24),
    "head of 48, wide tiles": Case((4, 6), (4, 6), False, 1, 48, tile=Tile(16, 32, 4, 1)),
    "head of 8, tall tiles": Case((5, 6), (5, 6), False, 1, 8, tile=Tile(32, 16, 4, 1)),
    "window 12": Case((12, 12), (12, 12), False, 1, 32, tile=Tile(64, 128, 4, 2)),
}


def draw(case: Case) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    grid = fit_window(case.feature_size, case.window_size, shifted=case.shifted)
    tokens = grid.window_size[0] * grid.window_size[1]
    windows = grid.padded_size[0] * grid.padded_size[1] // tokens
    channels = case.heads * case.head_dim
    qkv = torch.randn(case.images, windows, tokens, 3 * channels, generator=generator)
    # Shorter than F.normalize's least length: it is divided by that.
    qkv[0, 0, 1] = 0
    bias = torch.randn(case.heads, tokens, tokens, generator=generator)
    factor = torch.linspace(5, 20, case.heads) if case.is_cosine else None
    mask = attention_mask(grid)
    return (
        qkv.to(DEVICE, case.dtype),
        bias.to(DEVICE),
        None if mask is None else mask.to(DEVICE),
        None if factor is None else factor.to(DEVICE),
    )


def spelled_out(qkv: Tensor, bias: Tensor, mask: Tensor | None, factor: Tensor | None) -> Tensor:
    images, windows, tokens, _ = qkv.shape
    apart = qkv.float().view(images, windows, tokens, 3, bias.shape[0], -1)
    query, key, value = apart.permute(3, 0, 1, 4, 2, 5)
    if factor is None:
        query = query * query.shape[-1] ** -0.5
    else:
        query = torch.nn.functional.normalize(query, dim=-1) * factor.view(-1, 1, 1)
        key = torch.nn.functional.normalize(key, dim=-1)
    shared = bias.unsqueeze(0)
    if mask is not None:
        shared = shared.masked_fill(mask.unsqueeze(1), -torch.inf)
    return attend_reference(query, key, value, shared).transpose(2, 3).flatten(3)


def answer(
    attend: Callable[..., Tensor],
    qkv: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    factor: Tensor | None,
) -> list[Tensor]:
    """Output and gradients; queries', keys' and values' apart, for their sizes differ."""
    learned = [part.clone().requires_grad_() for part in (qkv, bias, factor) if part is not None]
    output = attend(learned[0], learned[1], mask, *learned[2:] or [None])
    target = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    of_qkv, *others = torch.autograd.grad(output.float(), learned, target.to(DEVICE))
    return [output.float(), *of_qkv.float().chunk(3, dim=-1), *others]


def worst_difference(case: Case) -> float:
    key = (case.window_size[0] * case.window_size[1], case.head_dim, case.dtype.itemsize)
    if case.tile is not None:
        TUNED_TILES[key] = case.tile
    try:
        given = draw(case)
        found = answer(fused_attention, *given)
    finally:
        TUNED_TILES.pop(key, None)
    differences = []
    for one, other in zip(found, answer(spelled_out, *given), strict=True):
        # The gradient of a query that is zero is as large as one over the least length.
        usual = other.abs() < 1e6
        differences.append((one - other)[usual].detach().abs().max() / other[usual].abs().max())
        torch.testing.assert_close(one[~usual], other[~usual], rtol=1e-4, atol=0)
    return torch.stack(differences).max().item()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_and_gradients_equal_attention_spelled_out(case: Case) -> None:
    assert worst_difference(case) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_rounds_products_operands_and_results_alone(dtype: torch.dtype) -> None:
    """Within some units in the last place: 2⁻⁸ of the largest value for bfloat16, 2⁻¹¹ for float16."""
    given = draw(CASES["shifted"]._replace(dtype=dtype))
    given[0][0, 0, 1] = given[0][0, 0, 2]
    for found, expected in zip(
        answer(fused_attention, *given), answer(spelled_out, *given), strict=True
    ):
        assert (found - expected).abs().max() < 6 * torch.finfo(dtype).eps * expected.abs().max()


def test_the_same_sums_each_time() -> None:
    given = draw(CASES["shifted"])
    for one, other in zip(
        answer(fused_attention, *given), answer(fused_attention, *given), strict=True
    ):
        assert torch.equal(one, other)


def test_a_frozen_bias_gets_no_gradient() -> None:
    qkv, bias, mask, factor = draw(CASES["shifted"])
    output = fused_attention(qkv.requires_grad_(), bias, mask, factor)
    output.sum().backward()
    assert qkv.grad is not None and bias.grad is None


def test_pytorch_finds_the_operator_well_formed() -> None:
    """It changes and aliases nothing, and fake tensors get the shapes that it returns."""
    qkv, bias, _, factor = draw(CASES["shifted"])
    apart = qkv[:, :1].view(1, 16, 3, 1, 32)
    torch.library.opcheck(
        torch.ops.simmim.window_attention.default,
        (apart, bias, factor, None),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("way", ["one window at a time", "compiled"])
def test_an_encoder_equals_itself_with_the_reference(way: str) -> None:
    """With the bias network, a shift and padding; with recomputation, and as one graph."""
    torch.manual_seed(0)
    images = torch.randn(1, 3, 8, 16).to(DEVICE)
    encoders = [
        SwinTransformer(
            embed_dim=16,
            depths=(2,),
            num_heads=(1,),
            image_size=(8, 16),
            window_size=(2, 3),
            norm="pre",
            attention_backend=backend,
            sequential_attention=1 if way == "one window at a time" else 0,
        ).to(DEVICE)
        for backend in ("reference", "triton")
    ]
    encoders[1].load_state_dict(encoders[0].state_dict())
    results = []
    for encoder in encoders:
        is_compiled = way == "compiled" and encoder is encoders[1]
        run = (
            torch.compile(encoder, fullgraph=True, backend="aot_eager") if is_compiled else encoder
        )
        output = run(images)
        gradients = torch.autograd.grad((output**3).mean(), list(encoder.parameters()))
        results.append([output.detach(), *gradients])
    names = ["output", *(name for name, _ in encoders[0].named_parameters())]
    for name, expected, found in zip(names, *results, strict=True):
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max(), name


def test_every_shape_gets_a_tile_that_the_kernels_can_take() -> None:
    for bytes_of_number in (2, 4):
        for head_dim in (8, 24, 32, 64, 128):
            for tokens in (4, 36, 49, 144, 576):
                tile = choose_tile(tokens, head_dim, bytes_of_number)
                for side in tile[:2]:
                    assert side >= 16 and side & (side - 1) == 0
    # No larger than the window asks for, and halved where that wastes less of the last tile.
    assert choose_tile(9, 32, 2)[:2] == (16, 16)
    assert choose_tile(64, 32, 2)[:2] == (64, 64)
    assert choose_tile(144, 32, 2)[:2] == (64, 32)
