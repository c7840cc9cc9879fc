"""Random numbers for the pictures of the `demo` data, by seed, split and index."""

import zlib

import numpy as np


def create_generator(seed: int, split: str, purpose: str, index: int) -> np.random.Generator:
    """A random generator that depends only on the arguments."""
    # Python's own hash of a string differs from process to process.
    key = [seed, zlib.crc32(split.encode()), zlib.crc32(purpose.encode()), index]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def draw_label(seed: int, split: str, index: int, classes: int) -> int:
    """The class of sample `index`; each block of `classes` samples holds every class once."""
    block, turn = divmod(index, classes)
    return int(create_generator(seed, split, "labels", block).permutation(classes)[turn])
