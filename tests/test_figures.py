"""The figures of docs/how-it-works.md show what the package does."""

import sys
from pathlib import Path

import numpy as np
import pytest

from simmim.models.swin.windows import fit_window

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import draw_figures  # noqa: E402


def test_shifted_windows_wrap_round_and_keep_opposite_sides_apart():
    window, region = draw_figures.window_of_tokens(fit_window((8, 8), (4, 4), shifted=True))
    # The four corners are one window, of four regions; the middle is one of one.
    corners = window[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert len(set(corners)) == 1
    assert sorted(region[[0, 0, -1, -1], [0, -1, 0, -1]]) == [0, 1, 2, 3]
    assert len(set(window[2:6, 2:6].flat)) == 1
    assert not region[2:6, 2:6].any()


def test_windows_that_are_not_shifted_are_squares():
    window, region = draw_figures.window_of_tokens(fit_window((8, 8), (4, 4), shifted=False))
    assert (window == np.kron([[0, 1], [2, 3]], np.ones((4, 4)))).all()
    assert not region.any()


def test_all_figures_are_drawn_and_stand_in_the_documentation(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["draw_figures.py", "--out", str(tmp_path)])
    draw_figures.main()
    drawn = sorted(path.name for path in tmp_path.iterdir())
    page = (ROOT / "docs" / "how-it-works.md").read_text()
    assert drawn == sorted(f"{name}.svg" for name in draw_figures.FIGURES)
    for name in drawn:
        assert f"images/{name}" in page
        assert (ROOT / "docs" / "images" / name).is_file()
        assert (tmp_path / name).stat().st_size < 200_000


@pytest.mark.parametrize("side", [8, 24])
def test_a_bias_by_offset_is_that_of_its_pairs(side):
    from simmim.models.swin.position_bias import ContinuousPositionBias

    bias = ContinuousPositionBias(1, (side, side), (8, 8), log_spaced=True)
    by_offset = draw_figures.by_offset(bias)
    pairs = bias()[0].detach().numpy()
    # Query 0 at the top left, key last at the bottom right: the farthest offset up and left.
    assert by_offset[0, 0] == pairs[0, -1]
    assert by_offset[-1, -1] == pairs[-1, 0]
