"""Random masks: exact counts, a function of (seed, step, place), uniform, and helpful refusals."""

import math
import re
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simmim.models.masking import RandomMaskGenerator, enlarge
from simmim.utils.errors import UserError


def masked_patches(generator: RandomMaskGenerator, mask: torch.Tensor) -> torch.Tensor:
    """One entry a mask patch, from one a token; fails where a patch is masked in part."""
    factor = generator.patch_size // generator.token_size
    patches = mask[:, ::factor, ::factor]
    assert torch.equal(enlarge(patches, factor), mask)
    return patches


@settings(deadline=None)
@given(
    grid=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    token_size=st.integers(1, 4),
    factor=st.integers(1, 3),
    percent=st.integers(1, 99),
    step=st.integers(0, 10**6),
)
def test_every_image_has_the_exact_count_rounded_up_of_whole_patches(
    grid: tuple[int, int], token_size: int, factor: int, percent: int, step: int
) -> None:
    expected = math.ceil(Fraction(percent, 100) * grid[0] * grid[1])
    assume(expected < grid[0] * grid[1])
    side = token_size * factor
    generator = RandomMaskGenerator(
        (grid[0] * side, grid[1] * side), side, token_size, percent / 100
    )
    mask = generator(torch.arange(5), step=step)
    assert mask.shape == (5, grid[0] * factor, grid[1] * factor)
    assert masked_patches(generator, mask).sum(dim=(1, 2)).tolist() == [expected] * 5
    assert generator.num_masked == expected


def test_the_paper_s_setting_masks_22_of_36_patches() -> None:
    generator = RandomMaskGenerator(192)
    assert (generator.num_masked, generator.num_patches) == (22, 36)
    assert generator(torch.arange(2), step=0).shape == (2, 48, 48)


@settings(deadline=None, max_examples=30)
@given(
    world_size=st.sampled_from([1, 2, 3, 4, 6, 12]),
    seed=st.integers(0, 2**63),
    step=st.integers(-1, 2**40),
)
def test_splitting_a_batch_across_ranks_changes_no_mask(
    world_size: int, seed: int, step: int
) -> None:
    generator = RandomMaskGenerator(32, 8, 4, seed=seed)
    places = torch.arange(12)
    parts = [generator(part, step=step) for part in places.chunk(world_size)]
    assert torch.equal(torch.cat(parts), generator(places, step=step))


def test_a_mask_depends_on_no_earlier_draw_and_no_global_state() -> None:
    first = RandomMaskGenerator(64, 8, seed=3)(torch.arange(4), step=7)
    again = RandomMaskGenerator(64, 8, seed=3)
    again(torch.arange(100), step=6)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    assert torch.equal(again(torch.arange(4), step=7), first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_seeds_steps_and_places_differ() -> None:
    seen = {
        tuple(row)
        for seed in range(5)
        for step in range(-1, 6)
        for row in RandomMaskGenerator(64, 8, seed=seed)(torch.arange(8), step=step)
        .flatten(1)
        .tolist()
    }
    assert len(seen) == 5 * 7 * 8


def test_every_patch_is_masked_equally_often_and_independently_of_its_neighbour() -> None:
    generator = RandomMaskGenerator((24, 40), 8, 8, ratio=0.4)
    trials, patches, masked = 20_000, 15, 6
    mask = generator(torch.arange(trials), step=0).flatten(1).double()
    share = masked / patches
    deviation = math.sqrt(share * (1 - share) / trials)
    assert (mask.mean(dim=0) - share).abs().max() < 5 * deviation
    # Without replacement, two patches are masked together in share · (masked - 1) / (patches - 1).
    together = mask.T @ mask / trials
    expected = share * (masked - 1) / (patches - 1)
    pairs = together[~torch.eye(patches, dtype=torch.bool)]
    assert (pairs - expected).abs().max() < 5 * math.sqrt(expected / trials)


def test_consecutive_steps_and_places_are_uncorrelated() -> None:
    generator = RandomMaskGenerator(32, 8, 8, ratio=0.5)
    steps = torch.stack([generator(torch.arange(50), step=step) for step in range(100)])
    masks = steps.flatten(2).double() - 0.5
    trials = masks.numel()
    for axis in (0, 1):
        product = masks.narrow(axis, 1, masks.shape[axis] - 1)
        product = product * masks.narrow(axis, 0, masks.shape[axis] - 1)
        assert product.mean().abs() < 5 * 0.25 / math.sqrt(trials)


def test_rows_are_height_and_columns_width() -> None:
    generator = RandomMaskGenerator((16, 48), 8, 4)
    assert generator.grid_size == (2, 6)
    assert generator(torch.arange(1), step=0).shape == (1, 4, 12)


def test_enlarging_repeats_each_entry_over_a_square() -> None:
    mask = torch.tensor([[[True, False], [False, False]]])
    expected = torch.zeros(1, 6, 6, dtype=torch.bool)
    expected[:, :3, :3] = True
    assert torch.equal(enlarge(mask, 3), expected)


def refusal(**arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        RandomMaskGenerator(**arguments)
    return str(caught.value)


def suggestions(message: str) -> list[dict[str, float]]:
    """Every setting that a message suggests, as arguments: each has to work by itself."""
    advice = message.rsplit("; use ", 1)[1].removesuffix(" or less")
    names = {
        "mask.ratio": "ratio",
        "mask.patch_size": "patch_size",
        "model.image_size": "image_size",
    }
    return [
        {names[name]: (float if name == "mask.ratio" else int)(value)}
        for name, values in re.findall(r"(m\w+\.\w+)=([\d.]+(?: or [\d.]+)*)", advice)
        for value in values.split(" or ")
    ]


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_a_ratio_outside_its_range_is_refused(ratio: float) -> None:
    assert refusal(image_size=192, ratio=ratio) == (
        f"mask ratio {ratio} is not between 0 and 1 (both excluded); use mask.ratio=0.6"
    )


def test_a_patch_that_does_not_divide_the_image_names_the_three_nearest_that_do() -> None:
    assert refusal(image_size=192, patch_size=40) == (
        "mask patch 40 does not divide image size 192; use mask.patch_size=24 or 32 or 48"
    )


def test_a_patch_that_divides_one_side_alone_is_refused() -> None:
    assert refusal(image_size=(192, 160), patch_size=48) == (
        "mask patch 48 does not divide image size 192×160; use mask.patch_size=8 or 16 or 32"
    )


def test_a_patch_that_splits_tokens_names_patches_that_do_not() -> None:
    assert refusal(image_size=48, patch_size=6, token_size=4) == (
        "mask patch 6 is not a multiple of the encoder's patch 4; use mask.patch_size=4 or 8 or 12"
    )


def test_an_image_that_splits_tokens_is_refused() -> None:
    assert refusal(image_size=30, patch_size=4, token_size=4) == (
        "image size 30 is not a multiple of the encoder's patch 4; use model.image_size=128"
    )
    assert RandomMaskGenerator(image_size=128, patch_size=4, token_size=4)


def test_masking_all_patches_is_refused_with_a_lower_ratio_and_other_patches() -> None:
    assert refusal(image_size=96, patch_size=32, ratio=0.89) == (
        "mask ratio 0.89 masks all 9 patches of 32 px; "
        "use mask.ratio=0.88 or less, or mask.patch_size=12 or 16 or 24"
    )


def test_one_patch_over_the_whole_image_is_refused_without_a_ratio_for_none_would_do() -> None:
    assert refusal(image_size=32, patch_size=32) == (
        "mask ratio 0.6 masks all 1 patches of 32 px; use mask.patch_size=4 or 8 or 16"
    )


def test_where_no_patch_fits_a_larger_image_is_asked_for() -> None:
    assert refusal(image_size=8, patch_size=4, ratio=0.9) == (
        "mask ratio 0.9 masks all 4 patches of 4 px; use mask.ratio=0.75 or less, or a larger image"
    )


@settings(deadline=None)
@given(
    image_size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    patch_size=st.integers(0, 40),
    token_size=st.integers(1, 4),
    percent=st.integers(1, 99),
)
def test_whatever_a_refusal_suggests_works(
    image_size: tuple[int, int], patch_size: int, token_size: int, percent: int
) -> None:
    image_size = (image_size[0] * token_size, image_size[1] * token_size)
    arguments = {
        "image_size": image_size,
        "patch_size": patch_size,
        "token_size": token_size,
        "ratio": percent / 100,
    }
    try:
        RandomMaskGenerator(**arguments)
    except UserError as error:
        ways_out = suggestions(str(error))
        assert ways_out or "a larger image" in str(error)
        for way_out in ways_out:
            RandomMaskGenerator(**(arguments | way_out))


def test_the_highest_ratio_that_is_suggested_leaves_a_patch_visible() -> None:
    for patches in range(2, 301):
        arguments = {"image_size": (4, 4 * patches), "patch_size": 4, "token_size": 4}
        [ratio, *_] = suggestions(refusal(**arguments, ratio=0.9999))
        assert RandomMaskGenerator(**arguments, **ratio).num_masked < patches
