"""What happens to images that cannot be read: each is replaced by another, or the run stops."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeAlias, TypedDict, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from simmim.data.decoding.size_limits import Limits, limited
from simmim.data.unreadable.retry import retry_transient_io, unreadable
from simmim.data.unreadable.skipped_list import SkippedImages, read_names
from simmim.utils.errors import UnreadableImageError, UserError

# The number of an image's class (-1: none), or its targets.
Label: TypeAlias = int | Float[Tensor, " targets"]
OnError = Literal["skip", "raise"]
Decode = Literal["workers", "device"]

# After this many unreadable images in a row, the run stops.
_MOST_REPLACEMENTS = 100
# With fewer images, a single unreadable one would be too large a fraction.
_FEW = 100


class ReadingOptions(TypedDict, total=False):
    """Options of every kind of data that is read from files."""

    on_error: OnError
    max_bad_fraction: float
    max_pixels: int
    min_side: int
    max_aspect: float
    exclude: str | None
    decode: Decode


@runtime_checkable
class Typed(Protocol):
    """An image: a tensor, or something that will be decoded to one."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its values."""


Image = TypeVar("Image", bound=Typed)


@dataclass(frozen=True)
class Candidate(Generic[Image]):
    """An image that may be a sample: its name, and how it is read (with its label)."""

    name: str
    read: Callable[[], tuple[Image, Label]]


@dataclass(frozen=True)
class Chosen(Generic[Image]):
    """An image and its label, and whether it replaces others that could not be read."""

    image: Image
    label: Label
    is_replacement: bool


class BadImagePolicy:
    """How many unreadable images are tolerated, and which were found.

    Attributes:
        skipped: the images that could not be read.
        value_type: dtype that all images must have (None: any), so that batches can be stacked.
    """

    def __init__(
        self,
        on_error: OnError = "skip",
        limits: Limits = Limits(),
        excluded: frozenset[str] = frozenset(),
        skipped: SkippedImages | None = None,
        value_type: torch.dtype | None = None,
    ) -> None:
        self.on_error: OnError = on_error
        self.limits = limits
        self.excluded = excluded
        self.skipped = skipped or SkippedImages(most=2**63, of=2**63)
        self.value_type = value_type

    def first_readable(self, candidates: Iterator[Candidate[Image]], epoch: int) -> Chosen[Image]:
        """The first candidate that can be read; unreadable ones before it are listed.

        Raises:
            UnreadableImageError: one cannot be read, and `on_error` is `raise`.
            UserError: too many cannot be read: in a row, or in the whole run.
        """
        failed, passed_over, last = 0, 0, "all are in data.exclude"
        for turn, candidate in enumerate(candidates):
            if candidate.name in self.excluded:
                passed_over += 1
                if passed_over > len(self.excluded):  # a stream that has started again
                    break
                continue
            try:
                image, label = self.read(candidate)
            except UnreadableImageError as error:
                if self.on_error == "raise":
                    raise
                failed, last = failed + 1, str(error)
                self.skipped.note(candidate.name, error.reason, epoch)
                if failed == _MOST_REPLACEMENTS:
                    break
            else:
                return Chosen(image, label, is_replacement=turn > 0)
        raise UserError(f"no image can be read, {failed} in a row were tried: {last}")

    def read(self, candidate: Candidate[Image]) -> tuple[Image, Label]:
        """One image and its label, within the size limits and of the dtype of all images.

        Raises:
            UnreadableImageError: it cannot be read.
        """
        with limited(self.limits):
            image, label = retry_transient_io(candidate.read)
        if self.value_type not in (None, image.dtype):
            kept, found = (
                str(kind).removeprefix("torch.") for kind in (self.value_type, image.dtype)
            )
            raise unreadable(
                candidate.name, f"its values are {found} and those of other images {kept}"
            )
        return image, label


@dataclass(frozen=True)
class Reading:
    """`ReadingOptions` with their defaults, checked.

    Attributes:
        on_error: `skip`: an image that cannot be read is replaced by the next one; or `raise`.
        max_bad_fraction: of all images, or of 100 if there are fewer; if more cannot be read, the
            run stops.
        max_pixels: see `Limits`, as for the next two.
        exclude: a file that lists images to leave out (`skipped_list.read_names`).
        decode: who decodes JPEG training images, `workers` or `device` (`decoding.on_device`).

    Raises:
        UserError: an invalid value, or no such file.
    """

    on_error: OnError = "skip"
    max_bad_fraction: float = 0.1
    max_pixels: int = Limits.max_pixels
    min_side: int = Limits.min_side
    max_aspect: float = Limits.max_aspect
    exclude: str | None = None
    decode: Decode = "workers"

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(
                f"data.max_bad_fraction {self.max_bad_fraction} is not in [0, 1]; use 0.1"
            )
        self.limits()

    def limits(self) -> Limits:
        """The limits on image sizes."""
        return Limits(self.max_pixels, self.min_side, self.max_aspect)

    def tolerance(self, images: int) -> BadImagePolicy:
        """The policy for this total number of `images`."""
        excluded = read_names(self.exclude)
        most = int(self.max_bad_fraction * max(images, _FEW))
        skipped = SkippedImages(most, images, excluded=excluded)
        return BadImagePolicy(self.on_error, self.limits(), excluded, skipped)
