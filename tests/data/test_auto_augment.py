"""timm's policies: every operation at its extremes on awkward images, and how policies are typed."""

import random
import re
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simmim.data.auto_augment import operations
from simmim.data.dataset import seeded
from simmim.data.transforms import RandAugment, strong_augmentation
from simmim.utils.errors import UserError

POLICIES = [
    *("rand-m9-mstd0.5-inc1", "rand-m9", "rand-m15-mmax20-inc1", "rand-m30-mmax30", "rand-p1-n3"),
    *("rand-tweights-inc1", "rand-t3a-n5", "rand-t3aw", "rand-mstd101-inc1", "rand-m0-inc1"),
    *("augmix", "augmix-m10-w2-d4-mstd0.5", "augmix-b1", "original", "originalr-mstd0.5"),
    *("v0", "v0r", "v0-mstd20", "3a"),
]
IMAGES = {
    "noise": torch.randint(0, 256, (3, 9, 9), dtype=torch.uint8, generator=torch.Generator()),
    "grey": torch.arange(0, 256, 4, dtype=torch.uint8).expand(3, 64, 64)[:, :16],
    "black": torch.zeros(3, 8, 8, dtype=torch.uint8),
    "white": torch.full((3, 8, 8), 255, dtype=torch.uint8),
    "one pixel": torch.full((3, 1, 1), 77, dtype=torch.uint8),
    "a line": torch.randint(0, 256, (3, 1, 12), dtype=torch.uint8, generator=torch.Generator()),
    "upright": torch.randint(0, 256, (3, 9, 7), dtype=torch.uint8, generator=torch.Generator()),
}


def alone(policy: str, name: str, magnitude: float) -> RandAugment:
    """The policy's operation of this name by itself, always applied."""
    augment = RandAugment(policy, 8)
    operation = next(each for each in operations(augment.policy) if each.name == name)
    operation.prob, operation.magnitude, operation.magnitude_std = 1, magnitude, 0
    augment.policy = operation
    return augment


@cache
def all_operations() -> dict[tuple[str, float], RandAugment]:
    """Each operation of each policy by itself, by its name and the largest magnitude it can have."""
    found = {}
    for policy in POLICIES:
        for each in operations(RandAugment(policy, 8).policy):
            most = each.magnitude_max or 10
            if (each.name, most) not in found:
                found[each.name, most] = alone(policy, each.name, most)
    return found


@pytest.mark.parametrize("kind", IMAGES)
def test_every_operation_takes_every_image_at_its_extremes(kind: str) -> None:
    image = IMAGES[kind]
    for (_, most), augment in all_operations().items():
        for magnitude in {0, 2, 5, 9, most}:
            for seed in range(2):  # of both directions
                augment.policy.magnitude = magnitude
                random.seed(seed)
                output = augment(image)
                assert output.shape == image.shape
                assert output.dtype == torch.uint8
    names = {name for name, _ in all_operations()}
    assert {"PosterizeIncreasing", "SolarizeAdd", "GaussianBlurRand", "Desaturate"} <= names


@cache
def cached_policy(policy: str, square: bool) -> RandAugment:
    return RandAugment(policy, (8, 8) if square else (8, 12))


@settings(max_examples=60, deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    kind=st.sampled_from(sorted(IMAGES)),
    seed=st.integers(0, 2**63),
)
def test_every_policy_takes_every_image_and_draws_by_the_seed(
    policy: str, kind: str, seed: int
) -> None:
    image = IMAGES[kind]
    try:
        augment = cached_policy(policy, image.shape[1] == image.shape[2])
    except UserError as error:
        # By timm's earlier versions.
        assert policy.startswith("augmix") and "takes square images alone" in str(error)
        return
    outputs = []
    for _ in range(2):
        with seeded(seed):
            outputs.append(augment(image))
    assert outputs[0].shape == image.shape
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    ("policy", "name", "magnitude", "kept"),
    [
        ("rand-m9-mstd0.5-inc1", "PosterizeIncreasing", 10, 0),
        ("rand-m9-mstd0.5-inc1", "PosterizeIncreasing", 7.6, 1),
        ("rand-m9-mstd0.5-inc1", "PosterizeIncreasing", 0, 4),
        ("rand-m15-mmax20-inc1", "PosterizeIncreasing", 15, -2),
        ("rand-m1", "Posterize", 1, 0),
        ("rand-m30-mmax30", "Posterize", 30, 12),
        ("original", "PosterizeOriginal", 6, 6),
    ],
)
def test_posterising_keeps_the_highest_bits_and_none_is_black(
    policy: str, name: str, magnitude: float, kept: int
) -> None:
    image = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    output = alone(policy, name, magnitude)(image)
    mask = 256 - 2 ** (8 - min(max(kept, 0), 8))
    assert torch.equal(output, image & mask if mask else torch.zeros_like(image))


def test_the_default_augmentation_draws_every_operation_of_its_policy() -> None:
    """300 images, as many as a first try of README's command: none is lost."""
    augment = strong_augmentation(16)
    image = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8)
    [policy] = [step.policy for step in augment.steps if isinstance(step, RandAugment)]
    drawn = count_calls(policy)
    for seed in range(300):
        with seeded(seed):
            assert augment(image).shape == (3, 16, 16)
    assert set(drawn) == {each.name for each in operations(policy)}


def count_calls(policy: Any) -> dict[str, int]:
    """How often each operation is called; filled while the policy runs."""
    calls: dict[str, int] = {}
    for operation in operations(policy):
        change = operation.aug_fn

        def counted(*args: Any, change: Any = change, name: str = operation.name, **kw: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return change(*args, **kw)

        operation.aug_fn = counted
    return calls


def test_rotated_pixels_are_bicubic_and_holes_have_the_mean_colour() -> None:
    augment = alone("rand-m9-mstd0.5-inc1", "Rotate", 10)
    output = augment(torch.full((3, 32, 32), 200, dtype=torch.uint8))
    assert {tuple(corner.tolist()) for corner in output[:, 0, :1].T} == {(124, 116, 104)}
    assert (output[:, 16, 16] == 200).all()


@pytest.mark.parametrize("policy", ["rand-m9-inc0", "augmix-b0"])
def test_a_switch_at_0_is_off_in_every_version_of_timm(policy: str) -> None:
    without, with_it = RandAugment(policy[: policy.rindex("-")], 8), RandAugment(policy, 8)
    names = [[each.name for each in operations(augment.policy)] for augment in (without, with_it)]
    assert names[0] == names[1]
    assert getattr(with_it.policy, "blended", False) is False


@pytest.mark.parametrize(
    ("policy", "what"),
    [
        ("", "and"),
        ("random", "and"),
        ("rand9", "and"),
        ("rand-m9-inc", "has the part 'inc' and"),
        ("rand-m9-tbest", "has the part 'tbest' and"),
        ("rand-m9.5", "has the part 'm9.5' and"),
        ("rand-m9-x1", "has the part 'x1' and"),
        ("rand--m9", "has the part '' and"),
        ("rand-m\u0669", "has the part 'm\u0669' and"),
        ("augmix-w0", "has the part 'w0' and"),
        ("augmix-n2", "has the part 'n2' and"),
        ("original-m9", "has the part 'm9' and"),
        ("v0-inc1", "has the part 'inc1' and"),
    ],
)
def test_a_policy_that_timm_would_pass_over_is_refused(policy: str, what: str) -> None:
    message = f"augmentation.rand_augment={policy} {what} is no policy of timm; use rand-m9-mstd0.5"
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        strong_augmentation(32, rand_augment=policy)


def test_more_operations_than_there_are_to_draw_once_are_refused() -> None:
    with pytest.raises(UserError, match="draws 16 of 15 operations, none twice; use n15 or less"):
        strong_augmentation(32, rand_augment="rand-n16-tweights")
    with seeded(0):
        output = RandAugment("rand-n15-tweights", 8)(IMAGES["noise"])
    assert output.shape == IMAGES["noise"].shape
