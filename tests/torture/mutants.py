"""Image files of every format, damaged in many ways, through the loaders; run apart, for it may crash.

    python tests/torture/mutants.py FIRST COUNT FOLDER

Prints what became of them as JSON. `FOLDER/last` holds the mutant that was read last.
"""

import io
import json
import resource
import signal
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from simmim.data.dataset import SampleKey, TransformedImages
from simmim.data.decoding.decode import decode_image
from simmim.data.decoding.size_limits import Limits, limited
from simmim.data.transforms import light_augmentation
from simmim.data.unreadable.policy import BadImagePolicy
from simmim.utils.errors import UnreadableImageError

# An image takes milliseconds.
SECONDS = 20
MAX_PIXELS = 4_000_000
# Three bytes a pixel, twice in RGBA while it is composited, and float64 within a TIFF's reader.
MOST_BYTES = 400 << 20


class Original(NamedTuple):
    """A whole file, and how many channels are asked of it."""

    name: str
    data: bytes
    channels: int


def originals() -> list[Original]:
    """Small files of all formats in their variants."""
    generator = np.random.default_rng(0)
    shades = generator.integers(0, 256, (4, 5, 4), dtype=np.uint8)
    picture = Image.fromarray(shades).resize((48, 36), Image.Resampling.BICUBIC)
    rgb, grey = picture.convert("RGB"), picture.convert("L")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    frames = [rgb, rgb.rotate(90), rgb.rotate(180)]
    variants = [
        ("jpg", rgb, {"exif": exif}),
        ("jpg", rgb, {"progressive": True, "subsampling": 0}),
        ("jpg", grey, {}),
        ("jpg", rgb.convert("CMYK"), {}),
        ("png", rgb, {"exif": exif}),
        ("png", picture, {}),
        ("png", rgb.quantize(16), {"transparency": 3}),
        ("png", wide, {}),
        ("webp", rgb, {"exif": exif}),
        ("webp", picture, {"lossless": True}),
        ("webp", rgb, {"save_all": True, "append_images": frames}),
        ("gif", rgb, {}),
        ("gif", rgb, {"save_all": True, "append_images": frames}),
        ("bmp", rgb, {}),
        ("bmp", rgb.quantize(16), {}),
        ("tiff", rgb, {"exif": exif}),
        ("tiff", rgb, {"compression": "tiff_lzw"}),
        ("tiff", picture, {"compression": "tiff_deflate"}),
        ("tiff", rgb, {"compression": "jpeg"}),
        ("tiff", wide, {}),
        ("tiff", grey.convert("1"), {"compression": "group4"}),
    ]
    found = []
    for number, (suffix, image, options) in enumerate(variants):
        file = io.BytesIO()
        image.save(file, "JPEG" if suffix == "jpg" else suffix, **options)
        found.append(Original(f"{number}.{suffix}", file.getvalue(), 1 if image is wide else 3))
    for number, values in enumerate(
        (
            np.asarray(rgb),
            generator.random((5, 12, 9), dtype=np.float32),
            np.asfortranarray(generator.integers(-9, 9, (9, 12, 2), dtype=np.int16)),
            generator.random((12, 9)),
        )
    ):
        file = io.BytesIO()
        np.save(file, values)
        channels = 1 if values.ndim == 2 else min(values.shape)
        found.append(Original(f"{number}.npy", file.getvalue(), channels))
    return found + band_tiffs(generator)


def band_tiffs(generator: np.random.Generator) -> list[Original]:
    """TIFF files of many bands, if their library is there."""
    try:
        import tifffile
    except ImportError:
        return []
    found = []
    for number, options in enumerate(
        (
            {"planarconfig": "separate"},
            {"planarconfig": "separate", "compression": "zlib", "tile": (16, 16)},
            {"planarconfig": "separate", "bigtiff": True, "compression": "lzw"},
        )
    ):
        file = io.BytesIO()
        values = generator.integers(0, 500, (5, 20, 24)).astype(np.uint16 if number else np.float32)
        tifffile.imwrite(file, values, photometric="minisblack", **options)
        found.append(Original(f"bands-{number}.tif", file.getvalue(), 5))
    return found


def mutate(data: bytes, others: list[Original], generator: np.random.Generator) -> bytes:
    """A file damaged in one to three of the ways that there are."""
    for _ in range(generator.integers(1, 4)):
        way = int(generator.integers(0, 7))
        place = int(generator.integers(0, max(1, len(data))))
        near = int(generator.integers(0, max(1, min(200, len(data)))))
        if way == 0:  # bits flip anywhere
            changed = bytearray(data)
            for at in generator.integers(0, max(1, len(data)), int(generator.integers(1, 30))):
                if changed:
                    changed[at] ^= 1 << int(generator.integers(0, 8))
            data = bytes(changed)
        elif way == 1:  # it is cut off
            data = data[:place]
        elif way == 2:  # a field of the header is another number
            size = int(generator.choice([1, 2, 4, 8]))
            value = int(
                generator.choice([0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 2**32 - 1])
            )
            order = "little" if generator.integers(0, 2) else "big"
            field = (value % 2 ** (8 * size)).to_bytes(size, order)
            data = data[:near] + field + data[near + size :]
        elif way == 3:  # its end is another file's
            other = others[int(generator.integers(0, len(others)))].data
            data = data[:place] + other[int(generator.integers(0, len(other))) :]
        elif way == 4:  # a part is missing
            data = data[:place] + data[place + int(generator.integers(1, 100)) :]
        elif way == 5:  # a part comes twice
            length = int(generator.integers(1, 200))
            data = data[:place] + data[place : place + length] * 2 + data[place + length :]
        else:  # a part is noise
            noise = generator.bytes(int(generator.integers(1, 64)))
            data = data[:near] + noise + data[near + len(noise) :]
    # Checksums would keep most damage of this format from its decoder.
    return with_checksums(data) if generator.integers(0, 2) else data


def with_checksums(data: bytes) -> bytes:
    """A PNG file with the checksums that its chunks should have; others as they are."""
    signature = b"\x89PNG\r\n\x1a\n"
    if not data.startswith(signature):
        return data
    parts, at = [signature], len(signature)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunk = data[at + 4 : at + 8 + length]
        parts += [data[at : at + 4], chunk, zlib.crc32(chunk).to_bytes(4, "big")]
        at += 12 + length
    return b"".join(parts)


def mutant(number: int, files: list[Original]) -> Original:
    """The mutant of this number, always the same."""
    generator = np.random.default_rng(number)
    original = files[number % len(files)]
    return original._replace(data=mutate(original.data, files, generator))


class OneImage:
    """A source of one file."""

    classes = ()

    def __init__(self, file: Original) -> None:
        self.file = file

    def present_classes(self) -> tuple[str, ...]:
        return ()

    def __len__(self) -> int:
        return 1

    def load(self, index: int) -> tuple[torch.Tensor, int]:
        return decode_image(self.file.data, self.file.name, self.file.channels), -1

    def identifier(self, index: int) -> str:
        return self.file.name


def outcome(file: Original) -> str:
    """`image` or `refused`; anything else is raised."""
    limits = Limits(max_pixels=MAX_PIXELS)
    transform = light_augmentation(32)
    images = TransformedImages(OneImage(file), transform, 0, BadImagePolicy("raise", limits))
    try:
        sample = images[SampleKey(0, 0)]
    except UnreadableImageError as error:
        assert error.reason
        assert "\n" not in str(error), str(error)
        return "refused"
    assert sample.image.shape == (file.channels, 32, 32)
    with limited(limits):
        whole = decode_image(file.data, file.name, file.channels)
    assert whole.dtype in (torch.uint8, torch.float32)
    return "image"


def main(first: int, count: int, folder: Path) -> None:
    """Reads the mutants of these numbers."""
    torch.set_num_threads(1)
    files = originals()
    for file in files:
        assert outcome(file) == "image", file.name
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen: Counter[str] = Counter()
    for number in range(first, first + count):
        file = mutant(number, files)
        (folder / "last").write_text(str(number))
        # Its default ends the process, whatever a library written in C is doing.
        signal.alarm(SECONDS)
        seen[f"{file.name.rpartition('.')[2]} {outcome(file)}"] += 1
        signal.alarm(0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    print(json.dumps({"outcomes": seen, "grown_bytes": grown}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
