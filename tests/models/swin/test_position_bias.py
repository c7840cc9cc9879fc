"""Position biases: the paper's formula written out, symmetry, transfer and precision."""

import itertools
import math

import pytest
import torch

from simmim.models.swin.position_bias import (
    ContinuousPositionBias,
    TablePositionBias,
    normalised_offsets,
    relative_offset_index,
    relative_offsets,
)

WINDOW = (2, 3)


def places(window: tuple[int, int]) -> list[tuple[int, int]]:
    """Row and column of each token of a window, in order."""
    return list(itertools.product(range(window[0]), range(window[1])))


def coordinate(offset: int, pretrained_side: int, *, log_spaced: bool) -> float:
    """What the bias network sees of an offset along one side: equation 4, official scale."""
    relative = offset / max(pretrained_side - 1, 1)
    if not log_spaced:
        return relative
    return math.copysign(math.log2(1 + abs(8 * relative)) / math.log2(8), relative)


def bias_by_hand(
    module: ContinuousPositionBias,
    window: tuple[int, int],
    pretrained: tuple[int, int],
    *,
    log_spaced: bool,
) -> torch.Tensor:
    """Pair by pair: 16 · sigmoid(second layer · relu(first layer · offset + bias))."""
    state = {name: value.double() for name, value in module.state_dict().items()}
    pairs = [
        [
            [
                coordinate(query[axis] - key[axis], pretrained[axis], log_spaced=log_spaced)
                for axis in (0, 1)
            ]
            for key in places(window)
        ]
        for query in places(window)
    ]
    offsets = torch.tensor(pairs, dtype=torch.float64)
    hidden = (offsets @ state["mlp.0.weight"].T + state["mlp.0.bias"]).clamp(min=0)
    output = hidden @ state["mlp.2.weight"].T
    return (16 / (1 + torch.exp(-output))).permute(2, 0, 1)


def create(
    window: tuple[int, int], pretrained: tuple[int, int], *, log_spaced: bool = True
) -> ContinuousPositionBias:
    torch.manual_seed(0)
    return ContinuousPositionBias(3, window, pretrained, log_spaced=log_spaced)


@pytest.mark.parametrize("log_spaced", [True, False])
@pytest.mark.parametrize("pretrained", [WINDOW, (4, 2), (12, 12)])
def test_the_bias_is_the_paper_s_formula(pretrained: tuple[int, int], log_spaced: bool) -> None:
    module = create(WINDOW, pretrained, log_spaced=log_spaced)
    expected = bias_by_hand(module, WINDOW, pretrained, log_spaced=log_spaced)
    torch.testing.assert_close(module().double(), expected, rtol=1e-5, atol=1e-5)
    assert module().std() > 0.1  # a constant would have hidden a wrong index


def test_offsets_run_over_all_of_a_window() -> None:
    offsets = relative_offsets(WINDOW)
    expected = [[[y, x] for x in range(-2, 3)] for y in range(-1, 2)]
    assert offsets.tolist() == expected


def test_the_index_finds_each_pair_s_offset() -> None:
    offsets = relative_offsets(WINDOW).view(-1, 2)
    index = relative_offset_index(WINDOW)
    for (i, query), (j, key) in itertools.product(enumerate(places(WINDOW)), repeat=2):
        assert offsets[index[i, j]].tolist() == [query[0] - key[0], query[1] - key[1]]


@pytest.mark.parametrize("window", [(1, 1), (2, 3), (4, 4), (1, 5)])
def test_opposite_pairs_mirror_each_other_in_the_index(window: tuple[int, int]) -> None:
    index = relative_offset_index(window)
    last = (2 * window[0] - 1) * (2 * window[1] - 1) - 1
    assert torch.equal(index + index.T, torch.full_like(index, last))


def test_log_spaced_offsets_at_known_places() -> None:
    # Of a window of 8: offset 7 is 1, that is log2(9) / 3; offset 0 stays 0.
    offsets = normalised_offsets((8, 8), (8, 8), log_spaced=True)
    assert offsets[7, 7].tolist() == [0, 0]
    torch.testing.assert_close(offsets[14, 0], torch.tensor([1.0, -1.0]) * math.log2(9) / 3)


def test_linear_offsets_reach_one_at_the_far_side() -> None:
    offsets = normalised_offsets((5, 3), (5, 3), log_spaced=False)
    assert offsets.amax(dim=(0, 1)).tolist() == [1, 1]
    assert offsets.amin(dim=(0, 1)).tolist() == [-1, -1]


@pytest.mark.parametrize("log_spaced", [True, False])
@pytest.mark.parametrize("window", [(1, 1), (1, 4), (4, 1)])
def test_windows_one_token_wide_give_finite_biases(
    window: tuple[int, int], log_spaced: bool
) -> None:
    module = create(window, window, log_spaced=log_spaced)
    bias = module()
    bias.sum().backward()
    assert bias.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_a_larger_window_keeps_the_bias_of_the_offsets_it_shares_with_the_pretrained_one() -> None:
    small, large = create((3, 3), (3, 3)), create((5, 5), (3, 3))
    large.load_state_dict(small.state_dict())
    # The pairs within the large window's first 3 × 3 tokens have the small window's offsets.
    corner = [row * 5 + column for row, column in places((3, 3))]
    torch.testing.assert_close(large()[:, corner][:, :, corner], small())


def test_without_the_pretrained_window_shared_offsets_change_their_bias() -> None:
    small, large = create((3, 3), (3, 3)), create((5, 5), (5, 5))
    large.load_state_dict(small.state_dict())
    corner = [row * 5 + column for row, column in places((3, 3))]
    assert not torch.allclose(large()[:, corner][:, :, corner], small(), atol=1e-2)


def test_the_bias_is_float32_to_the_bit_under_bf16_autocast() -> None:
    module = create((4, 4), (4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = module()
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, module())


def test_the_table_gives_each_pair_the_entry_of_its_offset() -> None:
    module = TablePositionBias(2, WINDOW)
    with torch.no_grad():
        module.table.copy_(torch.arange(30.0).view(15, 2))
    bias = module()
    for (i, query), (j, key) in itertools.product(enumerate(places(WINDOW)), repeat=2):
        row = (query[0] - key[0] + 1) * 5 + query[1] - key[1] + 2
        assert bias[:, i, j].tolist() == [2 * row, 2 * row + 1]


def test_an_entry_s_gradient_is_the_sum_over_its_pairs() -> None:
    module = TablePositionBias(2, WINDOW)
    of_pairs = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    module().backward(of_pairs)
    expected = torch.zeros(15, 2)
    for (i, query), (j, key) in itertools.product(enumerate(places(WINDOW)), repeat=2):
        expected[(query[0] - key[0] + 1) * 5 + query[1] - key[1] + 2] += of_pairs[:, i, j]
    torch.testing.assert_close(module.table.grad, expected)


def test_a_table_in_bf16_gives_a_float32_bias() -> None:
    assert TablePositionBias(2, WINDOW).bfloat16()().dtype == torch.float32
