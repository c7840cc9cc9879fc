"""Random numbers as a function of a key, the same on every device and in any order.

SplitMix64's mixing of a 64-bit counter (Steele, Lea and Flood, OOPSLA 2014), in integer tensors.
"""

import zlib
from functools import reduce

from jaxtyping import Int
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def derive_seed(*key: int | str) -> int:
    """A 64-bit seed that depends on every part of the key and on their order.

    A word in the key says what the numbers are for, so that equal numbers give other seeds
    elsewhere.
    """
    numbers = (zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key)
    return reduce(lambda state, part: _mix(state ^ _mix(part + _GOLDEN)), numbers, _GOLDEN)


def random_bits(seed: int, counters: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """64 random bits (as int64) for each counter; equal seeds and counters give equal bits."""
    state = counters * _signed(_GOLDEN) + _signed(seed & _MASK)
    state = (state ^ _shift_right(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shift_right(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shift_right(state, 31)


def _mix(state: int) -> int:
    """The mixing of `random_bits` for one Python int."""
    state &= _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    return value - (1 << 64) if value >> 63 else value


def _shift_right(value: Int[Tensor, "*shape"], bits: int) -> Int[Tensor, "*shape"]:
    """Logical right shift; int64's own `>>` keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
