"""Images that can only be read one after another: streams, and what makes batches of them.

A batch is read from one of several lanes, which the batches of a rank take in turn, and a worker
opens the lanes of the batches that it is given. So the content of a batch is a function of (seed,
epoch, its number, rank, number of ranks and of lanes), and a resumed run finds its place by passing
over what comes before, undecoded.
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
from simmim.data.unreadable.policy import BadImagePolicy, Candidate, Image
from simmim.utils.errors import UserError
from simmim.utils.rng import derive_seed


class Encoded(NamedTuple):
    """An image as a file's content, what names it to a person, and its label (-1: none)."""

    data: bytes
    name: str
    label: int

    def decode(self, channels: int) -> Real[Tensor, "c h w"]:
        """The image; UserError names one that cannot be read."""
        return self.open(channels).decode()

    def open(self, channels: int) -> LazyImage:
        """The same, decoded later if it can be."""
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
        """The classes that some image of this stream may have."""

    def __len__(self) -> int:
        """Samples that count as an epoch."""

    def read_part(self, epoch: int, part: int, parts: int) -> Iterator[Encoded]:
        """One of `parts` equal shares of the epoch's images; together they have each image once."""


class FirstImages:
    """The first images of a stream, kept in memory undecoded: what is held out of one."""

    def __init__(
        self, images: Iterator[Encoded], limit: int, classes: tuple[str, ...], channels: int
    ) -> None:
        self.images = list(islice(images, limit))
        self.classes = classes
        self.channels = channels

    def present_classes(self) -> tuple[str, ...]:
        """The classes that some image here has."""
        labels = sorted({image.label for image in self.images if image.label >= 0})
        return tuple(self.classes[label] for label in labels)

    def unlabelled(self) -> list[int]:
        """The images without a label, where others have one."""
        if not self.classes:
            return []
        return [index for index, image in enumerate(self.images) if image.label < 0]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def load(self, index: int) -> tuple[Real[Tensor, "c h w"], int]:
        """Decodes one image; UserError names one that cannot be read."""
        return self.images[index].decode(self.channels), self.images[index].label

    def open(self, index: int) -> tuple[LazyImage, int]:
        """The same, decoded later if it can be."""
        return self.images[index].open(self.channels), self.images[index].label

    def identifier(self, index: int) -> str:
        """Its place in the stream."""
        return self.images[index].name


class StreamedImages(Dataset[Sample]):
    """A stream seen through a transform, by keys that ask for places of the epoch in turn.

    The key's index is the sample's place in the epoch over all ranks, as `TrainSampler` deals them.
    Randomness depends on (seed, epoch, index). An unreadable image is replaced by the next of its
    lane; one that replaces another, or comes again because its share of the stream is shorter than
    the epoch, is marked as a repeat.
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
        """For a worker, which opens lanes of its own."""
        return self.__dict__ | {"_open": {}}

    def __len__(self) -> int:
        """Samples in an epoch."""
        return len(self.stream)

    def __getitem__(self, key: SampleKey) -> Sample:
        """The sample at a place of the epoch."""
        return Sample(*self.read(key, self.transform))

    def read(
        self, key: SampleKey, transform: Callable[[LazyImage], Image]
    ) -> tuple[Image, int, int]:
        """The same by another transform: what it makes of the picture, its label and index."""
        batch, place = divmod(key.sample_index, self.batch_size * self.world_size)
        turn, lane = divmod(batch, self.lanes)
        self._advance(key.epoch, lane, turn * self.batch_size + place % self.batch_size)
        reader = self._open[lane]
        candidates = self._candidates(reader, key, transform)
        chosen = self.tolerance.first_readable(candidates, key.epoch)
        is_repeat = key.is_padding or chosen.is_replacement or reader.look_ahead(0)[1]
        return chosen.image, chosen.label, -1 if is_repeat else key.sample_index

    def _advance(self, epoch: int, number: int, position: int) -> None:
        """Brings a lane to a position: forwards where it can, anew for another epoch."""
        # Another epoch may give this worker other lanes, and each keeps a buffer of images.
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
    """A part of the epoch's stream, begun again when it ends before the epoch does."""

    def __init__(self, epoch: int, stream: ImageStream, part: int, parts: int) -> None:
        self.epoch = epoch
        self.position = 0
        self._ahead: deque[tuple[Encoded, bool]] = deque()
        self._images = _endless(lambda: stream.read_part(epoch, part, parts))

    def pass_to(self, position: int) -> None:
        """Leaves out what comes before a position."""
        while self.position < position:
            if self._ahead:
                self._ahead.popleft()
            else:
                next(self._images)
            self.position += 1

    def look_ahead(self, distance: int) -> tuple[Encoded, bool]:
        """What comes so many images later, and whether it has come before."""
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
