"""Decodes JPEG training images on the device (`data.decode=device`).

A worker reads a file and its header and draws crop and flip as usual, but passes on the encoded
file; when the batch is sent to the device, its files are decoded, cropped and resized there. Images
that are not plain JPEGs are decoded by the worker. What the device cannot decode is made again as a
worker makes it: replaced and listed as usual. Damage that the device's decoder fills in is not
noticed.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
import torchvision
from jaxtyping import Float, Int, Real, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from simmim.data.dataset import Sample, SampleKey, Transform, TransformedImages
from simmim.data.decoding.decode import LazyJpeg
from simmim.data.decoding.jpeg import decode_whole, is_plain
from simmim.data.decoding.lazy_image import Box, LazyImage
from simmim.data.decoding.resize import Interpolation, resize
from simmim.data.loader import TimedLoader
from simmim.data.sources.streams import StreamedImages
from simmim.data.transforms import CropFirst, RandomFlip
from simmim.data.unreadable.policy import Decode, Label
from simmim.utils.console import warn
from simmim.utils.errors import UserError
from simmim.utils.sizes import Pair

# Pixels decoded at a time (3 bytes each), so that a batch of photographs fits beside a model.
_MOST_PIXELS = 2**25
# Mean difference in levels. Correct decoders differ by less: in inverse DCT and chroma upsampling.
_MOST_LEVELS = 4.0
_MOST_WARNINGS = 10


class Part(NamedTuple):
    """The part of a JPEG file that a sample shows: the file's name and size, and a box of its image."""

    name: str
    bytes: int
    pixels: int
    box: Box
    is_mirrored: bool


class EncodedPart(NamedTuple):
    """An image that is not decoded yet."""

    file: bytes
    part: Part

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its values."""
        return torch.uint8


class UndecodedSample(NamedTuple):
    """A future `Sample`, and the key with which it can be made again."""

    image: Real[Tensor, "c h w"] | EncodedPart
    label: Label
    sample_index: int
    key: SampleKey


class PackedBatch(NamedTuple):
    """Samples as a worker sends them: in few tensors, as each takes a file in shared memory.

    `files` are concatenated; `parts` has None for an image that is in `decoded`.
    """

    files: UInt8[Tensor, " n"]
    parts: list[Part | None]
    decoded: Real[Tensor, "d c h w"] | None
    label: Int[Tensor, " b"] | Float[Tensor, "b targets"]
    sample_index: Int[Tensor, " b"]
    keys: list[SampleKey]


class UndecodedImages(Dataset[UndecodedSample]):
    """Images whose JPEG files are not decoded, with exactly the crops that `images` would have.

    `augmentation` is that of `images`; `require_crop_alone` has checked that it only crops and
    flips.
    """

    def __init__(self, images: TransformedImages | StreamedImages, augmentation: CropFirst) -> None:
        self.images = images
        self.augmentation = augmentation
        self._told: set[str] = set()

    @property
    def size(self) -> Pair:
        """Height and width of the crops."""
        return self.augmentation.crop.size

    @property
    def interpolation(self) -> Interpolation:
        """How the crops are resized."""
        return self.augmentation.crop.interpolation

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> UndecodedSample:
        """Reads one image."""
        return UndecodedSample(*self.images.read(key, self._draw), key)

    def _draw(self, picture: LazyImage) -> Real[Tensor, "c h w"] | EncodedPart:
        if not (isinstance(picture, LazyJpeg) and is_plain(picture.data)):
            return self.augmentation.from_picture(picture)
        box = self.augmentation.crop.choose(picture.height, picture.width)
        is_mirrored = False
        for step in self.augmentation.steps:
            assert isinstance(step, RandomFlip)
            is_mirrored ^= step.choose()
        pixels = picture.height * picture.width
        return EncodedPart(
            picture.data, Part(picture.name, len(picture.data), pixels, box, is_mirrored)
        )

    def make_again(self, key: SampleKey, name: str, reason: str) -> Sample:
        """The sample as a worker makes it, after its file could not be decoded on the device.

        Raises:
            UserError: as `BadImagePolicy.first_readable`.
        """
        if name not in self._told and len(self._told) < _MOST_WARNINGS:
            self._told.add(name)
            last = "; no more are told" if len(self._told) == _MOST_WARNINGS else ""
            warn(f"data.decode=device: {name} is decoded on the CPU ({reason}){last}")
        return self.images[key]


class UndecodedBatch:
    """A batch that becomes a `Sample` each time that it is sent to a device."""

    def __init__(self, packed: PackedBatch, images: UndecodedImages) -> None:
        self.packed = packed
        self.images = images
        self.label = packed.label
        self.sample_index = packed.sample_index

    def to(self, device: torch.device) -> Sample:
        """The batch on the device (Lightning calls this for every batch that has it)."""
        packed = self.packed
        # Only NVIDIA's GPUs have a decoder.
        decoding = device if device.type == "cuda" else torch.device("cpu")
        label, sample_index = packed.label.clone(), packed.sample_index.clone()
        decoded = iter(() if packed.decoded is None else packed.decoded.to(decoding))
        pictures = decode_parts(packed.files, [part for part in packed.parts if part], decoding)
        images = []
        for place, part in enumerate(packed.parts):
            if part is None:
                images.append(next(decoded))
                continue
            picture = next(pictures)
            if isinstance(picture, Tensor):
                images.append(show(part, picture, self.images.size, self.images.interpolation))
                continue
            sample = self.images.make_again(packed.keys[place], part.name, picture)
            images.append(sample.image.to(decoding))
            label[place] = torch.as_tensor(sample.label)
            sample_index[place] = sample.sample_index
        return Sample(torch.stack(images).to(device), label.to(device), sample_index.to(device))


class UndecodedLoader(TimedLoader[UndecodedSample]):
    """A loader of `UndecodedImages`; decoding comes after it, and does not count as waiting."""

    def __iter__(self) -> Iterator[UndecodedBatch]:  # type: ignore[override]
        """The batches, each with this process's dataset, which can make a sample again."""
        assert isinstance(self.dataset, UndecodedImages)
        for packed in super().__iter__():
            yield UndecodedBatch(packed, self.dataset)


def pack(samples: Sequence[UndecodedSample]) -> PackedBatch:
    """Collates samples."""
    encoded = [sample.image for sample in samples if isinstance(sample.image, EncodedPart)]
    decoded = [sample.image for sample in samples if isinstance(sample.image, Tensor)]
    files = np.frombuffer(bytearray().join(image.file for image in encoded), np.uint8)
    return PackedBatch(
        torch.from_numpy(files),
        [
            sample.image.part if isinstance(sample.image, EncodedPart) else None
            for sample in samples
        ],
        torch.stack(decoded) if decoded else None,
        torch.stack([torch.as_tensor(sample.label) for sample in samples]),
        torch.tensor([sample.sample_index for sample in samples]),
        [sample.key for sample in samples],
    )


def decode_parts(
    files: UInt8[Tensor, " n"], parts: Sequence[Part], device: torch.device
) -> Iterator[UInt8[Tensor, "3 _ _"] | str]:
    """The whole image of each part's file, or why it cannot be decoded."""
    contents = torch.split(files, [part.bytes for part in parts])
    first, pixels = 0, 0
    for place, part in enumerate(parts):
        pixels += part.pixels
        is_last = place + 1 == len(parts)
        if is_last or pixels + parts[place + 1].pixels > _MOST_PIXELS:
            yield from decode_files(contents[first : place + 1], device)
            first, pixels = place + 1, 0


def decode_files(
    files: Sequence[UInt8[Tensor, " _"]], device: torch.device
) -> list[UInt8[Tensor, "3 _ _"] | str]:
    """Decodes JPEG files on a device; for one that it cannot decode, gives the reason."""
    if device.type == "cuda":
        # torchvision decodes on its own CUDA stream, into memory that running kernels may still
        # read.
        torch.cuda.current_stream(device).synchronize()
    try:
        return list(torchvision.io.decode_jpeg(list(files), mode="RGB", device=device))
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # not the files' fault
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
    if len(files) == 1:
        return [reason]
    return [decode_files([file], device)[0] for file in files]


def show(
    part: Part,
    picture: UInt8[Tensor, "3 _ _"],
    size: Pair,
    interpolation: Interpolation = "bicubic",
) -> UInt8[Tensor, "3 h w"]:
    """The part of a decoded image that a sample shows: cropped, resized and flipped."""
    top, left, height, width = part.box
    cropped = picture[None, :, top : top + height, left : left + width]
    # As floats, since only CPUs resize integers: so all devices do the same.
    image = resize(cropped.float(), size, interpolation)[0].round().clamp(0, 255).to(torch.uint8)
    return image.flip(-1) if part.is_mirrored else image


def require_crop_alone(decode: Decode, transform: Transform | None, channels: int) -> None:
    """Raises UserError for an augmentation, or channels, that `decode=device` does not support.

    A `transform` None means no training, where the device decodes nothing.
    """
    if decode == "workers" or transform is None:
        return
    if channels != 3:
        raise UserError(
            f"data.decode=device decodes JPEG files in RGB and the data has {channels} channels; use "
            "data.decode=workers"
        )
    steps = transform.steps if isinstance(transform, CropFirst) else [transform]
    others = [type(step).__name__ for step in steps if not isinstance(step, RandomFlip)]
    if others:
        raise UserError(
            f"data.decode=device can crop and flip alone, and augmentation has {', '.join(others)}; "
            "use data.decode=workers, or augmentation.rand_augment=null augmentation.random_erasing=0"
        )


def require_decoder(device: torch.device) -> None:
    """Raises UserError for a device that does not decode a known image correctly."""
    if not hasattr(torchvision.io, "decode_jpeg"):  # deprecated since 0.29
        raise UserError(
            "data.decode=device needs torchvision.io.decode_jpeg, and torchvision "
            f"{torchvision.__version__} has none; use data.decode=workers, or an earlier torchvision"
        )
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    shades = np.stack(np.broadcast_arrays(ramp, ramp[:, None], ramp[::-1]), -1)
    known = simplejpeg.encode_jpeg(np.ascontiguousarray(shades), quality=95)
    [found] = decode_files([torch.from_numpy(np.frombuffer(bytearray(known), np.uint8))], device)
    if isinstance(found, Tensor):
        levels = (found.cpu().float() - decode_whole(known)).abs().mean().item()
        found = "" if levels <= _MOST_LEVELS else f"a known picture is {levels:.0f} of 255 off"
    if found:
        raise UserError(
            f"data.decode=device: {device} cannot decode JPEG files ({found}); use data.decode=workers"
        )
    if device.type != "cuda":
        warn(
            f"data.decode=device: on {device} the main process decodes JPEG files by itself, for no "
            "more than NVIDIA's GPUs have a decoder; data.decode=workers is faster"
        )
