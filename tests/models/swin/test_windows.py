"""Windows: cutting and laying out again, and who may attend to whom, for any map, window, shift."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simmim.models.swin.windows import (
    WindowGrid,
    attention_mask,
    fit_window,
    merge_windows,
    partition_windows,
)


@st.composite
def grids(draw: st.DrawFn) -> WindowGrid:
    """Any map, window and shift, not only those that an encoder makes."""
    features = draw(st.tuples(*[st.integers(1, 9)] * 2))
    window = draw(st.tuples(*[st.integers(1, 6)] * 2))
    shift = tuple(draw(st.integers(0, side - 1)) for side in window)
    return WindowGrid(features, window, shift)


def numbered_map(grid: WindowGrid) -> torch.Tensor:
    """A map whose entries are 1, 2, 3 …, so that 0 is padding."""
    height, width = grid.feature_size
    return torch.arange(1.0, height * width + 1).view(1, height, width, 1)


def windows_by_hand(grid: WindowGrid) -> list[list[tuple[int, int]]]:
    """For each window, its tokens' rows and columns on the padded map before the roll."""
    (height, width), (window_height, window_width) = grid.padded_size, grid.window_size
    return [
        [
            ((top + y + grid.shift_size[0]) % height, (left + x + grid.shift_size[1]) % width)
            for y, x in itertools.product(range(window_height), range(window_width))
        ]
        for top, left in itertools.product(
            range(0, height, window_height), range(0, width, window_width)
        )
    ]


def mask_by_hand(grid: WindowGrid) -> torch.Tensor:
    """Tokens that the roll brought together, or of which one is padding, must not attend.

    A window lies across the map's seam on an axis where its first token's coordinate is greater
    than another's: all tokens on one side of the seam have at least the first one's coordinate.
    """
    masks = []
    for tokens in windows_by_hand(grid):
        first = tokens[0]

        def region(token: tuple[int, int], first: tuple[int, int] = first) -> tuple[bool, ...]:
            padding = token[0] >= grid.feature_size[0] or token[1] >= grid.feature_size[1]
            return (padding, token[0] < first[0], token[1] < first[1])

        masks.append([[region(query) != region(key) for key in tokens] for query in tokens])
    return torch.tensor(masks)


@settings(deadline=None)
@given(grid=grids(), channels=st.integers(1, 3), seed=st.integers(0, 99))
def test_merging_undoes_partitioning(grid: WindowGrid, channels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, *grid.feature_size, channels, generator=generator)
    windows = partition_windows(features, grid)
    assert windows.shape[2] == grid.window_size[0] * grid.window_size[1]
    assert torch.equal(merge_windows(windows, grid), features)


@settings(deadline=None)
@given(grid=grids())
def test_each_window_holds_the_tokens_counted_out_by_hand(grid: WindowGrid) -> None:
    height, width = grid.feature_size
    expected = [
        [y * width + x + 1 if y < height and x < width else 0 for y, x in tokens]
        for tokens in windows_by_hand(grid)
    ]
    assert partition_windows(numbered_map(grid), grid)[0, :, :, 0].tolist() == expected


@settings(deadline=None)
@given(grid=grids())
def test_only_neighbours_before_the_roll_may_attend_and_never_real_with_padding(
    grid: WindowGrid,
) -> None:
    mask = attention_mask(grid)
    expected = mask_by_hand(grid)
    if mask is None:
        assert not expected.any()
    else:
        assert torch.equal(mask, expected)


def test_no_mask_is_made_where_all_may_attend() -> None:
    assert attention_mask(WindowGrid((8, 8), (4, 4), (0, 0))) is None


@pytest.mark.parametrize("grid", [((8, 8), (4, 4), (2, 2)), ((5, 3), (4, 4), (0, 0))])
def test_every_token_may_attend_to_itself(grid: tuple[tuple[int, int], ...]) -> None:
    mask = attention_mask(WindowGrid(*grid))
    assert mask is not None
    assert mask.any()
    assert not mask.diagonal(dim1=1, dim2=2).any()


def test_shifts_are_half_a_window() -> None:
    assert fit_window((16, 16), (8, 6), shifted=True).shift_size == (4, 3)
    assert fit_window((16, 16), (8, 6), shifted=False).shift_size == (0, 0)


def test_a_window_shrinks_to_the_map_and_stops_shifting_on_that_axis_alone() -> None:
    grid = fit_window((6, 24), (12, 12), shifted=True)
    assert grid.window_size == (6, 12)
    assert grid.shift_size == (0, 6)


def test_a_window_of_the_map_s_own_size_does_not_shift() -> None:
    assert fit_window((12, 12), (12, 12), shifted=True).shift_size == (0, 0)


@settings(deadline=None)
@given(grid=grids())
def test_the_padded_map_is_the_smallest_of_whole_windows(grid: WindowGrid) -> None:
    for padded, feature, window in zip(
        grid.padded_size, grid.feature_size, grid.window_size, strict=True
    ):
        assert padded % window == 0
        assert feature <= padded < feature + window
