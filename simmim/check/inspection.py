"""Reads every image of a source in several processes; finds its properties or why reading fails."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from hashlib import blake2b
from io import BytesIO
from pathlib import PurePosixPath
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from PIL import Image

from simmim.data.dataset import ImageSource
from simmim.data.decoding.decode import open_encoded
from simmim.data.decoding.npy import is_array, is_tiff
from simmim.data.decoding.pillow import FORMATS
from simmim.data.unreadable.policy import BadImagePolicy, Candidate
from simmim.utils.errors import UnreadableImageError, UserError

# Images per task of a worker process.
_CHUNK = 32
# Chunks queued per process, so that millions of images are not submitted at once.
_AHEAD = 4

_FORMATS_OF = {
    ".jpg": ("JPEG", "MPO"),
    ".jpeg": ("JPEG", "MPO"),
    ".png": ("PNG",),
    ".webp": ("WEBP",),
    ".tif": ("TIFF",),
    ".tiff": ("TIFF",),
    ".bmp": ("BMP", "DIB"),
    ".gif": ("GIF",),
    ".npy": ("NPY",),
}


@runtime_checkable
class FileSource(ImageSource, Protocol):
    """A source of images that are stored as encoded files."""

    @property
    def channels(self) -> int:
        """Channels of each image."""

    def read(self, index: int) -> bytes:
        """The content of one image's file.

        Raises:
            UnreadableImageError: the file cannot be read.
        """


class Finding(NamedTuple):
    """The properties of one image.

    Attributes:
        name: the image's name in messages.
        reason: why it cannot be read; "" if it can.
        format: the file format by content; "" if unknown.
        height: in pixels; 0 if the image cannot be read.
        width: in pixels; 0 if the image cannot be read.
        value_type: `uint8` or `float32`; "" if the image cannot be read.
        digest: 64 bits of its content's hash.
    """

    name: str
    reason: str
    format: str
    height: int
    width: int
    value_type: str
    digest: int

    @property
    def is_misnamed(self) -> bool:
        """Whether the name's suffix belongs to another format."""
        known = _FORMATS_OF.get(PurePosixPath(self.name).suffix.lower())
        return bool(self.format) and known is not None and self.format not in known


def inspect(source: FileSource, tolerance: BadImagePolicy, processes: int) -> Iterator[Finding]:
    """The findings of all images that `tolerance` does not exclude, in the order of the source."""
    chunks = (range(first, first + _CHUNK) for first in range(0, len(source), _CHUNK))
    start = (source, tolerance)
    ahead: deque[Future[list[Finding]]] = deque()
    with ProcessPoolExecutor(processes, initializer=_start, initargs=start) as pool:
        try:
            for chunk in chunks:
                ahead.append(pool.submit(_inspect_chunk, chunk))
                if len(ahead) > _AHEAD * processes:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                "a process of the check was killed, most often for want of memory; use fewer "
                "processes, or a smaller data.max_pixels"
            ) from None


def inspect_image(source: FileSource, index: int, tolerance: BadImagePolicy) -> Finding:
    """The properties of one image, read as in a run."""
    name = source.identifier(index)
    data = b""

    def read() -> tuple[torch.Tensor, int]:
        nonlocal data
        data = source.read(index)
        return open_encoded(data, name, source.channels).decode(), -1

    reason, value_type, height, width = "", "", 0, 0
    try:
        image, _ = tolerance.read(Candidate(name, read))
        height, width = image.shape[-2:]
        value_type = str(image.dtype).removeprefix("torch.")
    except UnreadableImageError as error:
        reason = error.reason
    digest = int.from_bytes(blake2b(data, digest_size=8).digest(), "big", signed=True)
    return Finding(name, reason, find_format(data), height, width, value_type, digest)


def find_format(data: bytes) -> str:
    """The format of a file's content: Pillow's name for it, or NPY; "" if unknown."""
    if is_array(data[:8]):
        return "NPY"
    if is_tiff(data[:8]):
        return "TIFF"
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            return image.format or ""
    except Exception:  # damaged headers raise exceptions of many types
        return ""


_source: FileSource
_tolerance: BadImagePolicy


def _start(source: FileSource, tolerance: BadImagePolicy) -> None:
    global _source, _tolerance
    _source, _tolerance = source, tolerance
    torch.set_num_threads(1)


def _inspect_chunk(chunk: range) -> list[Finding]:
    indices = (index for index in chunk if index < len(_source))
    kept = (index for index in indices if _source.identifier(index) not in _tolerance.excluded)
    return [inspect_image(_source, index, _tolerance) for index in kept]
