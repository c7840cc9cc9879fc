"""Streams, whose images can only be read one after another, and the dataset that reads them.

A rank's part of a stream consists of lanes. Its batches are read from the lanes in turn, and a
worker opens the lanes of the batches that it is given. So the content of a batch is a function of
(seed, epoch, its number, rank, number of ranks and of lanes), and a resumed run finds its place by
skipping the images before it, undecoded.
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Real
from torch import Tensor
from torch.utils.data import Dataset

from simmim.data.dataset import Sample, SampleKey, Transform, on_lazy_images, seeded
from simmim.data.decoding.decode import open_encoded
from simmim.data.decoding.lazy_image import LazyImage
from simmim.data.unreadable.policy import BadImagePolicy, Candidate, Image, Label
from simmim.utils.errors import UserError
from simmim.utils.rng import derive_seed


class Encoded(NamedTuple):
    """An encoded image file's content, its readable name, and its label (-1: none)."""

    data: bytes
    name: str
    label: int

    def decode(self, channels: int) -> Real[Tensor, "c h w"]:
        """Decodes the image; a UserError names it if it cannot be read."""
        return self.open(channels).decode()

    def open(self, channels: int) -> LazyImage:
        """Like `decode`, but with decoding deferred if possible."""
        return open_encoded(self.data, self.name, channels)


@runtime_checkable
class ImageStream(Protocol):
    """Images in an order that the stream chooses, a function of (seed, epoch)."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels; empty without labels."""

    @property
    def channels(self) -> int:
        """Channels of each image."""

    def present_classes(self) -> tuple[str, ...]:
        """The classes that may occur in this stream."""

    def __len__(self) -> int:
        """Samples that count as an epoch."""

    def read_part(self, epoch: int, part: int, parts: int) -> Iterator[Encoded]:
        """One of `parts` equal shares of the epoch's images; together they have each image once."""


class FirstImages:
    """The first images of a stream, kept in memory undecoded: its held-out images."""

    def __init__(
        self, images: Iterator[Encoded], limit: int, classes: tuple[str, ...], channels: int
    ) -> None:
        self.images = list(islice(images, limit))
        self.classes = classes
        self.channels = channels

    def present_classes(self) -> tuple[str, ...]:
        """The classes that occur in these images."""
        labels = sorted({image.label for image in self.images if image.label >= 0})
        return tuple(self.classes[label] for label in labels)

    def unlabelled(self) -> list[int]:
        """Indices of the images without a label, if there are classes."""
        if not self.classes:
            return []
        return [index for index, image in enumerate(self.images) if image.label < 0]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def load(self, index: int) -> tuple[Real[Tensor, "c h w"], int]:
        """Decodes one image; a UserError names it if it cannot be read."""
        return self.images[index].decode(self.channels), self.images[index].label

    def open(self, index: int) -> tuple[LazyImage, int]:
        """Like `load`, but with decoding deferred if possible."""
        return self.images[index].open(self.channels), self.images[index].label

    def identifier(self, index: int) -> str:
        """The image's name in the stream."""
        return self.images[index].name


class StreamedImages(Dataset[Sample]):
    """A stream with a transform, read by keys that request places of the epoch in order.

    A key's index is the sample's place in the epoch over all ranks, as `TrainSampler` distributes
    them. Randomness depends on (seed, epoch, index). An unreadable image is replaced by the next of
    its lane; an image that replaces another, or is read again because its part of the stream is
    shorter than the epoch, is marked as a repeat.
    """

    def __init__(
        self,
        stream: ImageStream,
        transform: Transform,
        seed: int,
        *,
        batch_size: int,
        lanes: int,
        rank: int = 0,
        world_size: int = 1,
        tolerance: BadImagePolicy | None = None,
    ) -> None:
        self.stream = stream
        self.transform = on_lazy_images(transform)
        self.seed = seed
        self.batch_size = batch_size
        self.lanes = lanes
        self.rank = rank
        self.world_size = world_size
        self.tolerance = tolerance or BadImagePolicy("raise")
        self._open: dict[int, _Lane] = {}

    def __getstate__(self) -> dict[str, Any]:
        """The state for a worker, which opens its own lanes."""
        return self.__dict__ | {"_open": {}}

    def __len__(self) -> int:
        """Samples in an epoch."""
        return len(self.stream)

    def __getitem__(self, key: SampleKey) -> Sample:
        """The sample at a place of the epoch."""
        return Sample(*self.read(key, self.transform))

    def read(
        self, key: SampleKey, transform: Callable[[LazyImage], Image]
    ) -> tuple[Image, Label, int]:
        """Like `__getitem__` with another transform: the transformed image, its label and index."""
        batch, place = divmod(key.sample_index, self.batch_size * self.world_size)
        turn, lane = divmod(batch, self.lanes)
        self._advance(key.epoch, lane, turn * self.batch_size + place % self.batch_size)
        reader = self._open[lane]
        candidates = self._candidates(reader, key, transform)
        chosen = self.tolerance.first_readable(candidates, key.epoch)
        is_repeat = key.is_padding or chosen.is_replacement or reader.look_ahead(0)[1]
        return chosen.image, chosen.label, -1 if is_repeat else key.sample_index

    def _advance(self, epoch: int, number: int, position: int) -> None:
        """Moves a lane to a position: forwards if possible, else from its start."""
        # In another epoch, this worker may get other lanes, and each open one holds a buffer of
        # images.
        self._open = {number: lane for number, lane in self._open.items() if lane.epoch == epoch}
        lane = self._open.get(number)
        if lane is None or lane.position > position:
            part = self.rank * self.lanes + number
            lane = _Lane(epoch, self.stream, part, self.world_size * self.lanes)
            self._open[number] = lane
        lane.pass_to(position)

    def _candidates(
        self, lane: "_Lane", key: SampleKey, transform: Callable[[LazyImage], Image]
    ) -> Iterator[Candidate[Image]]:
        for distance in count():
            encoded, _ = lane.look_ahead(distance)
            yield Candidate(encoded.name, partial(self._read, encoded, key, transform))

    def _read(
        self, encoded: Encoded, key: SampleKey, transform: Callable[[LazyImage], Image]
    ) -> tuple[Image, int]:
        picture = encoded.open(self.stream.channels)
        with seeded(derive_seed(self.seed, "augmentation", key.epoch, key.sample_index)):
            return transform(picture), encoded.label


class _Lane:
    """A part of the epoch's stream, which starts again if it ends before the epoch does."""

    def __init__(self, epoch: int, stream: ImageStream, part: int, parts: int) -> None:
        self.epoch = epoch
        self.position = 0
        self._ahead: deque[tuple[Encoded, bool]] = deque()
        self._images = _endless(lambda: stream.read_part(epoch, part, parts))

    def pass_to(self, position: int) -> None:
        """Skips the images before a position."""
        while self.position < position:
            if self._ahead:
                self._ahead.popleft()
            else:
                next(self._images)
            self.position += 1

    def look_ahead(self, distance: int) -> tuple[Encoded, bool]:
        """The image at this distance ahead, and whether it is a repeat."""
        while len(self._ahead) <= distance:
            self._ahead.append(next(self._images))
        return self._ahead[distance]


def _endless(start: Callable[[], Iterator[Encoded]]) -> Iterator[tuple[Encoded, bool]]:
    for turn in count():
        is_empty = True
        for image in start():
            is_empty = False
            yield image, turn > 0
        if is_empty:
            raise UserError(
                "a part of the stream holds no image that can be read; use fewer data.num_workers, "
                "or check data.root"
            )
