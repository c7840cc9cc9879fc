"""Random bits: SplitMix64's published numbers, Python and tensors alike, uniform and distinct."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simmim.utils.rng import derive_seed, random_bits

GOLDEN = 0x9E3779B97F4A7C15
ANY_64_BITS = st.integers(0, 2**64 - 1)


def bits(seed: int, counter: int) -> int:
    """`random_bits` of one counter, unsigned."""
    return random_bits(seed, torch.tensor([counter])).item() % 2**64


def splitmix64(state: int) -> int:
    """The published algorithm's output for a state, in Python's integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
    return state ^ (state >> 31)


def test_counters_run_through_the_published_sequence() -> None:
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [bits(1234567, counter) for counter in range(1, 6)] == expected


@settings(deadline=None)
@given(seed=ANY_64_BITS, counter=st.integers(-(2**63), 2**63 - 1))
def test_tensors_mix_as_python_s_integers_do(seed: int, counter: int) -> None:
    assert bits(seed, counter) == splitmix64((seed + counter * GOLDEN) % 2**64)


@settings(deadline=None)
@given(first=st.integers(-(2**63), 2**64), second=st.integers(-(2**63), 2**64))
def test_derived_seeds_are_the_same_mixing_part_by_part(first: int, second: int) -> None:
    state = splitmix64(GOLDEN ^ splitmix64((first + GOLDEN) % 2**64))
    assert derive_seed(first) == state
    assert derive_seed(first, second) == splitmix64(state ^ splitmix64((second + GOLDEN) % 2**64))


def test_bits_do_not_depend_on_shape_or_order() -> None:
    counters = torch.arange(24)
    flat = random_bits(5, counters)
    assert torch.equal(random_bits(5, counters.view(2, 3, 4)), flat.view(2, 3, 4))
    assert torch.equal(random_bits(5, counters.flip(0)), flat.flip(0))


def test_each_bit_is_set_half_of_the_time() -> None:
    drawn = random_bits(derive_seed(0, 0), torch.arange(20_000))
    share = torch.stack([(drawn >> bit) & 1 for bit in range(64)]).double().mean(dim=1)
    assert (share - 0.5).abs().max() < 5 * 0.5 / math.sqrt(20_000)


def test_neighbouring_counters_and_seeds_differ_in_half_of_their_bits() -> None:
    here = random_bits(7, torch.arange(5_000))
    for there in (random_bits(7, torch.arange(1, 5_001)), random_bits(8, torch.arange(5_000))):
        changed = here ^ there
        share = torch.stack([(changed >> bit) & 1 for bit in range(64)]).double().mean()
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(64 * 5_000)


def test_counters_give_distinct_bits() -> None:
    assert random_bits(3, torch.arange(100_000)).unique().numel() == 100_000


def test_seeds_differ_by_every_part_of_the_key_its_order_and_its_length() -> None:
    parts = (-1, 0, 1, 2, 2**32, 2**63)
    keys = [(), *((a,) for a in parts), *((a, b) for a in parts for b in parts)]
    keys += [(a, b, c) for a in parts for b in parts for c in parts]
    assert len({derive_seed(*key) for key in keys}) == len(keys)


def test_seeds_fit_64_bits() -> None:
    seeds = [derive_seed(number) for number in range(1_000)]
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert max(seeds) > 2**63
