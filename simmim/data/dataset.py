"""The types of the data path: sources of images, keys that identify samples, and samples."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor
from torch.utils.data import Dataset

from simmim.data.decoding.lazy_image import CroppingTransform, DecodedImage, LazyImage
from simmim.data.unreadable.policy import BadImagePolicy, Candidate, Image, Label
from simmim.utils.rng import derive_seed

Transform = Callable[[Tensor], Tensor]

# Replaces NumPy's global bit generator while a transform draws.
_NUMPY_GENERATOR = np.random.MT19937(0)


class SampleKey(NamedTuple):
    """Identifies one sample of one epoch; with the seed, it determines the augmentation."""

    epoch: int
    sample_index: int
    is_padding: bool = False


class Sample(NamedTuple):
    """One image or, collated, a batch of them.

    `label` is the number of a class (-1: none), or a vector of targets. `sample_index` is the
    image's index in its source, or -1 for a repeat (padding or a replacement), which must not be
    counted.
    """

    image: Real[Tensor, "*b c h w"]
    label: Int[Tensor, "*b"] | Float[Tensor, "*b targets"] | int
    sample_index: Int[Tensor, "*b"] | int


def is_counted(batch: Sample) -> Bool[Tensor, " b"]:
    """Which images count in a validation metric, because they are not repeats; there may be none.

    All images must go through the model first: if its weights are sharded, every rank has to take
    part in each forward pass.
    """
    assert isinstance(batch.sample_index, Tensor)
    return batch.sample_index >= 0


@runtime_checkable
class ImageSource(Protocol):
    """Decoded images by index: the interface that each kind of data has to provide."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels; empty without labels."""

    def present_classes(self) -> tuple[str, ...]:
        """The classes that occur in this source."""

    def __len__(self) -> int:
        """Number of images."""

    def load(self, index: int) -> tuple[Real[Tensor, "c h w"], Label]:
        """The image at its own size, uint8 or float32, and its label (-1 if there is none).

        Raises:
            UnreadableImageError: it cannot be read.
        """

    def identifier(self, index: int) -> str:
        """A unique, readable name of the image: a path, or a place in a stream."""


@runtime_checkable
class LazyImageSource(ImageSource, Protocol):
    """A source of files that are decoded only once their crop is known."""

    def open(self, index: int) -> tuple[LazyImage, Label]:
        """The image, with decoding deferred if possible, and its label."""


class TransformedImages(Dataset[Sample]):
    """A source with a transform whose randomness depends on (seed, epoch, index) only.

    An image that cannot be read is replaced by the next readable one in the source, marked as a
    repeat, if `tolerance` allows it.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        seed: int,
        tolerance: BadImagePolicy | None = None,
    ) -> None:
        self.source = source
        self.transform = on_lazy_images(transform)
        self.seed = seed
        self.tolerance = tolerance or BadImagePolicy("raise")
        self._files = source if isinstance(source, LazyImageSource) else None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Loads and transforms one image."""
        return Sample(*self.read(key, self.transform))

    def read(
        self, key: SampleKey, transform: Callable[[LazyImage], Image]
    ) -> tuple[Image, Label, int]:
        """Like `__getitem__` with another transform: the transformed image, its label and index."""
        chosen = self.tolerance.first_readable(self._candidates(key, transform), key.epoch)
        is_counted = not (key.is_padding or chosen.is_replacement)
        return chosen.image, chosen.label, key.sample_index if is_counted else -1

    def _candidates(
        self, key: SampleKey, transform: Callable[[LazyImage], Image]
    ) -> Iterator[Candidate[Image]]:
        for turn in range(len(self)):
            place = (key.sample_index + turn) % len(self)
            read = partial(self._read, place, key, transform)
            yield Candidate(self.source.identifier(place), read)

    def _read(
        self, place: int, key: SampleKey, transform: Callable[[LazyImage], Image]
    ) -> tuple[Image, Label]:
        picture, label = self._open(place)
        with seeded(derive_seed(self.seed, "augmentation", key.epoch, key.sample_index)):
            return transform(picture), label

    def _open(self, place: int) -> tuple[LazyImage, Label]:
        if self._files is not None:
            return self._files.open(place)
        image, label = self.source.load(place)
        return DecodedImage(image), label


def on_lazy_images(transform: Transform) -> Callable[[LazyImage], Real[Tensor, "c h w"]]:
    """The transform for lazy images, which are decoded only as far as it needs them."""
    if isinstance(transform, CroppingTransform):
        return transform.from_picture
    return partial(_decoded, transform)


def _decoded(transform: Transform, picture: LazyImage) -> Real[Tensor, "c h w"]:
    """Decodes and transforms; at module level, so that it can be pickled for spawned workers."""
    return transform(picture.decode())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds Python, NumPy and PyTorch (CPU) within the block, and restores their states afterwards.

    Makes any library's transform a function of `seed`, whichever generator it draws from.
    """
    python_state, torch_state = random.getstate(), torch.default_generator.get_state()
    numpy_generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    # Copying NumPy's state takes 30 times as long.
    np.random.set_bit_generator(_NUMPY_GENERATOR)  # type: ignore[attr-defined]
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed % 2**63)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_bit_generator(numpy_generator)  # type: ignore[attr-defined]
        torch.default_generator.set_state(torch_state)
