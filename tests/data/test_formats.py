"""Other formats, and what they share: orientation, broken EXIF, depth."""

import io
import struct
import sys
import zlib
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import pytest
from format_cases import HEIGHT, WIDTH, Case, check, eight, grey, orient, samples, tiff
from PIL import Image

from simmim.data.decoding.decode import decode_image, open_encoded
from simmim.utils.errors import UserError


def encode(format_: str, pixels: np.ndarray | Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, format_, **options)
    return file.getvalue()


EXACT = {
    "JPEG": ({"quality": 100, "subsampling": 0}, 6),
    "PNG": ({}, 0),
    "WEBP": ({"lossless": True}, 0),
    "AVIF": ({"quality": 100, "subsampling": "4:4:4"}, 6),
    "TIFF": ({"compression": "tiff_lzw"}, 0),
}


@pytest.mark.parametrize("format_", EXACT)
@pytest.mark.parametrize(
    "entry",
    [
        b"garbage!garbage!garbage!",
        b"II*\0\xff\xff\xff\x7f",
        b"II*\0\x08\0\0\0\xff\xff\x12\x01\x03",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\0\0\0\0\0\0\0\0",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x0b\0\x01\0\0\0\0\0\0\x7f\0\0\0\0",
        *(
            b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([value]) + bytes(7)
            for value in (0, 9)
        ),
    ],
    ids=["noise", "far", "cut off", "fraction", "float", "0", "9"],
)
def test_broken_exif_costs_no_picture(format_, entry):
    pixels = samples(8, 3)
    options, levels = EXACT[format_]
    if format_ == "TIFF":
        # Whose own directory this is; here some of its entries are nonsense.
        file = bytearray(encode(format_, pixels, software="x" * 40, x_resolution=72.0))
        [place] = struct.unpack_from("<I", file, 4)
        for at in range(place + 2, len(file) - 12, 12):
            if file[at : at + 2] in (b"\x1a\x01", b"\x31\x01"):  # XResolution, Software
                file[at + 2 : at + 12] = (entry[8:] + b"\xff" * 10)[:10]
        data = bytes(file)
    else:
        good = Image.Exif()
        good[0x010E] = "x" * 80
        packed = good.tobytes()[6:]
        file = encode(format_, pixels, exif=good, **options)
        assert packed in file
        data = file.replace(packed, entry + bytes(len(packed) - len(entry)))
        if format_ == "PNG":
            start = data.index(b"eXIf")
            end = start + 4 + len(packed)
            crc = struct.pack(">I", zlib.crc32(data[start:end]))
            data = data[:end] + crc + data[end + 4 :]
    check(Case(data, pixels, levels))


@pytest.mark.parametrize("format_", EXACT)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_stands_upright(format_, orientation):
    pixels = samples(8, 3)
    options, levels = EXACT[format_]
    exif = Image.Exif()
    exif[0x0112] = orientation
    check(Case(encode(format_, pixels, exif=exif, **options), TURNED[orientation](pixels), levels))


TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_of_planes_stands_upright(bits, orientation):
    values = samples(bits, 3)
    data = tiff(values, photometric="rgb", planarconfig="separate", **orient(orientation))
    check(Case(data, TURNED[orientation](eight(values, bits)), 0.51))


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("count", [1, 3])
def test_a_deep_jpeg_2000_keeps_its_shades(bits, count, monkeypatch):
    values = samples(bits, count)
    data = imagecodecs.jpeg2k_encode(
        values[..., 0] if count == 1 else values, level=0, bitspersample=bits, codecformat="jp2"
    )
    shades = eight(values, bits)
    case = Case(data, grey(shades) if count == 1 else shades, 1)
    check(case)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    if count == 3:
        with pytest.raises(UserError, match=r'pip install "simmim\[tiff\]"'):
            decode_image(data, "a")
    else:
        check(case)


@pytest.mark.parametrize("highest", [1, 15, 100, 255, 1000, 65535])
@pytest.mark.parametrize("kind", [b"P2", b"P3", b"P5", b"P6"])
def test_a_ppm_shows_shares_of_its_highest_value(kind, highest):
    count = 3 if kind in (b"P3", b"P6") else 1
    values = (samples(16, count) / 65535 * highest).round().astype(int)
    if kind in (b"P2", b"P3"):
        pixels = " ".join(map(str, values.ravel())).encode()
    else:
        pixels = values.astype("u1" if highest < 256 else ">u2").tobytes()
    shades = values * 255 / highest
    data = b"%s\n%d %d\n%d\n" % (kind, WIDTH, HEIGHT, highest) + pixels
    check(Case(data, grey(shades) if count == 1 else shades, 1))


def test_a_jpeg_of_12_bits_is_refused_as_such():
    data = imagecodecs.jpeg_encode(samples(12, 3), 98, bitspersample=12)
    for read in (decode_image, lambda data, name: open_encoded(data, name).decode()):
        with pytest.raises(UserError, match="a JPEG of 12 bits a sample is not read"):
            read(data, "a")
