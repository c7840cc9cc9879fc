"""Formats × depths × photometries × transparencies × layouts: each file as the picture it was made of.

Files are made of known values; what they should look like is computed from these, by no reader.
"""

import io
import itertools
import struct
import sys
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from simmim.data.decoding.decode import decode_image, open_encoded
from simmim.data.decoding.lazy_image import Box
from simmim.utils.errors import UserError

HEIGHT, WIDTH = 20, 28
PALETTE = np.random.default_rng(7).integers(0, 256, (3, 256)).astype(np.uint16)


class Case(NamedTuple):
    """A file, what it shows in RGB, and by how much reading it may differ."""

    data: bytes
    truth: np.ndarray
    levels: float = 0


def samples(bits: int, count: int = 1) -> np.ndarray:
    """Values from the lowest to the highest of a depth, others in each sample."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    ramps = [x / (WIDTH - 1), y / (HEIGHT - 1), 1 - x / (WIDTH - 1), (x + y) / (WIDTH + HEIGHT - 2)]
    shades = np.stack([ramps[number % 4] for number in range(count)], -1)
    dtype = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    return (shades * (2**bits - 1)).round().astype(dtype)


def eight(values: np.ndarray, bits: int) -> np.ndarray:
    """Shares of a depth's highest value, in 255 levels."""
    return values.astype(float) * 255 / (2**bits - 1)


def on_white(shades: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Straight alpha, of 255 levels, on white."""
    share = opacity[..., None] / 255
    return shades * share + 255 * (1 - share)


def grey(shades: np.ndarray) -> np.ndarray:
    return np.repeat(shades.reshape(HEIGHT, WIDTH, 1), 3, -1)


def tiff(values: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    if values.ndim == 3 and options.get("planarconfig") == "separate":
        values = np.moveaxis(values, -1, 0)
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def orient(orientation: int) -> dict[str, Any]:
    return {"extratags": [(274, "H", 1, orientation, False)]}


# --- TIFF ---------------------------------------------------------------------------------------

LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "big-endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True},
    "big-endian BigTIFF": {"byteorder": ">", "bigtiff": True},
    "strips": {"rowsperstrip": 7},
    "tiles": {"tile": (16, 16)},
    "lzw": {"compression": "lzw"},
    "lzw big-endian": {"compression": "lzw", "byteorder": ">"},
    "deflate, predictor": {"compression": "deflate", "predictor": True},
    "packbits": {"compression": "packbits"},
    "zstd": {"compression": "zstd"},
    "lzma, tiles": {"compression": "lzma", "tile": (16, 16)},
}
SOME_LAYOUTS = ("plain", "tiles", "lzw big-endian")


def lab_of(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D50) of sRGB: L* in [0, 100]."""
    linear = np.where(rgb <= 10.31, rgb / 255 / 12.92, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4360, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]]
    )
    xyz = linear @ to_xyz.T / (0.9642, 1.0, 0.8249)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def rgb(bits: int, options: dict[str, Any]) -> Case:
    values = samples(bits, 3)
    return Case(tiff(values, photometric="rgb", **options), eight(values, bits), 0.51)


def rgb_and(extra: str) -> Callable[[int, dict[str, Any]], Case]:
    """RGB and one sample more."""

    def make(bits: int, options: dict[str, Any]) -> Case:
        values = samples(bits, 4)
        shades = eight(values, bits)
        colour, opacity = shades[..., :3], shades[..., 3]
        truth = colour if extra == "unspecified" else on_white(colour, opacity)
        if extra == "assocalpha":
            values[..., :3] = (values[..., :3] * (opacity[..., None] / 255)).round()
        data = tiff(values, photometric="rgb", extrasamples=[extra], **options)
        return Case(data, truth, 0.51 if extra == "unspecified" else 2)

    return make


def grey_and_alpha(bits: int, options: dict[str, Any]) -> Case:
    values = samples(bits, 2)
    shades = eight(values, bits)
    data = tiff(values, photometric="minisblack", extrasamples=["unassalpha"], **options)
    return Case(data, grey(on_white(shades[..., :1], shades[..., 1])), 2)


def inks(bits: int, options: dict[str, Any]) -> Case:
    values = samples(bits, 4)
    shades = 255 - eight(values, bits)
    data = tiff(values, photometric="separated", **options)
    return Case(data, shades[..., :3] * shades[..., 3:] / 255, 2)


def lab(bits: int, options: dict[str, Any]) -> Case:
    # Soft colours, for bright ones are steep in L*a*b*.
    shades = 64 + eight(samples(8, 3), 8) / 2
    codes = lab_of(shades) * ((2.55, 1, 1) if bits == 8 else (655.35, 256, 256))
    values = codes.round().astype(np.int64).astype(f"u{bits // 8}")
    return Case(tiff(values, photometric="cielab", **options), shades, 12)


def ycbcr(bits: int, options: dict[str, Any]) -> Case:
    values = samples(bits, 3)
    data = tiff(values, photometric="ycbcr", subsampling=(1, 1), **options)
    return Case(data, rgb_of_ycbcr(eight(values, bits)), 1.5)


def rgb_of_ycbcr(codes: np.ndarray) -> np.ndarray:
    y, cb, cr = np.moveaxis(codes - (0, 128, 128), -1, 0)
    shades = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)
    return shades.clip(0, 255)


def one_sample(photometry: str) -> Callable[[int, dict[str, Any]], Case]:
    """Greys of any number of bits, and palettes."""

    def make(bits: int, options: dict[str, Any]) -> Case:
        values = samples(bits)[..., 0]
        colours = PALETTE[:, : 2**bits]
        if bits in (1, 8, 16):
            palette = {"colormap": colours * 257} if photometry == "palette" else {}
            stored = values.astype(bool) if bits == 1 else values
            data = tiff(stored, photometric=photometry, **palette, **options)
        else:
            code = ("miniswhite", "minisblack", "", "palette").index(photometry)
            palette = colours.ravel() * 257 if photometry == "palette" else ()
            data = packed_tiff(values, bits, code, options.get("byteorder", "<"), palette)
        if photometry == "palette":
            return Case(data, np.moveaxis(colours[:, values], 0, -1))
        shades = grey(eight(values, bits))
        return Case(data, shades if photometry == "minisblack" else 255 - shades, 0.51)

    return make


def packed_tiff(
    values: np.ndarray, bits: int, photometry: int, order: str, palette: Sequence[int] = ()
) -> bytes:
    """One strip of samples that fill no bytes, highest bits first in either order of bytes."""
    rows = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    pixels = np.packbits(rows.reshape(HEIGHT, -1).astype(np.uint8), axis=1).tobytes()
    colours = struct.pack(f"{order}{len(palette)}H", *palette)
    entries = [(256, 3, 1, WIDTH), (257, 3, 1, HEIGHT), (258, 3, 1, bits), (259, 3, 1, 1)]
    entries += [(262, 3, 1, photometry), (273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, HEIGHT)]
    entries += [(279, 4, 1, len(pixels))]
    if colours:
        entries += [(320, 3, len(palette), 8 + len(pixels))]
    directory = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        is_short = kind == 3 and count == 1
        packed = struct.pack(order + ("H2x" if is_short else "I"), value)
        directory += struct.pack(order + "HHI", tag, kind, count) + packed
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(
        order + "I", 8 + len(pixels) + len(colours)
    )
    return start + pixels + colours + directory + bytes(4)


KINDS: dict[str, Callable[[int, dict[str, Any]], Case]] = {
    "RGB": rgb,
    "RGB and alpha": rgb_and("unassalpha"),
    "RGB and premultiplied alpha": rgb_and("assocalpha"),
    "RGB and more": rgb_and("unspecified"),
    "grey and alpha": grey_and_alpha,
    "CMYK": inks,
    "L*a*b*": lab,
    "YCbCr": ycbcr,
}


def tiff_cases() -> dict[str, Callable[[], Case]]:
    cases: dict[str, Callable[[], Case]] = {}
    for (kind, make), bits, planes, layout in itertools.product(
        KINDS.items(), (8, 16), ("contig", "separate"), LAYOUTS
    ):
        # All layouts of some kinds, some layouts of all kinds.
        if (kind != "RGB" and layout not in SOME_LAYOUTS) or (kind == "YCbCr" and bits == 16):
            continue
        options = {"planarconfig": planes} | LAYOUTS[layout]
        cases[f"{kind}, {bits} bits, {planes}, {layout}"] = partial(make, bits, options)
    for photometry, bits, layout in itertools.product(
        ("minisblack", "miniswhite", "palette"), (1, 2, 4, 8, 10, 12, 14, 16), LAYOUTS
    ):
        is_packed = bits % 8 != 0 and bits > 1
        is_left_out = (
            (is_packed and layout not in ("plain", "big-endian"))
            or (photometry == "palette" and bits not in (2, 4, 8))
            or (bits == 1 and "predictor" in LAYOUTS[layout])
        )
        if not is_left_out:
            make = one_sample(photometry)
            cases[f"{photometry}, {bits} bits, {layout}"] = partial(make, bits, LAYOUTS[layout])
    return cases


TIFFS = tiff_cases()


def check(case: Case) -> None:
    image = decode_image(case.data, "a")
    assert image.dtype == torch.uint8
    assert image.shape == (3, *case.truth.shape[:2])
    difference = np.abs(image.permute(1, 2, 0).numpy().astype(float) - case.truth)
    assert difference.max() <= case.levels


@pytest.mark.parametrize("name", TIFFS)
def test_a_tiff_shows_what_it_was_made_of(name, monkeypatch):
    case = TIFFS[name]()
    check(case)
    # Without the extra it is the same, or is refused.
    monkeypatch.setitem(sys.modules, "tifffile", None)
    try:
        check(case)
    except UserError as error:
        assert 'pip install "simmim[tiff]"' in str(error)


# --- readers meet ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RGB, 16 bits, separate, plain", "miniswhite, 16 bits, plain"])
def test_a_crop_of_a_tiff_shows_the_same_as_the_whole(name):
    case = TIFFS[name]()
    whole = decode_image(case.data, "a")
    picture = open_encoded(case.data, "a")
    assert torch.equal(picture.decode(), whole)
    cropped = picture.crop_resized(Box(2, 3, 16, 20), (16, 20))
    assert torch.equal(cropped, whole[:, 2:18, 3:23])


# --- PNG ------------------------------------------------------------------------------------------

# First row and column of each pass of an interlaced picture, and its steps.
ADAM7 = (
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)),
    (1, 0, 2, 1),
)
PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def chunk(kind: bytes, content: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(
    values: np.ndarray, bits: int, colours: int, before=b"", after=b"", interlaced: bool = False
) -> bytes:
    def rows(part: np.ndarray) -> bytes:
        flat = part.reshape(len(part), -1)
        if bits < 8:
            ones = (flat[..., None] >> np.arange(bits - 1, -1, -1)) & 1
            flat = np.packbits(ones.reshape(len(part), -1).astype(np.uint8), axis=1)
        return b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in flat)

    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    content = b"".join(rows(values[y::down, x::right]) for y, x, down, right in passes)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colours, 0, 0, interlaced)
    pixels = chunk(b"IDAT", zlib.compress(content))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + before
        + pixels
        + after
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("interlaced", [False, True], ids=["", "interlaced"])
@pytest.mark.parametrize("is_transparent", [False, True], ids=["", "transparent"])
@pytest.mark.parametrize(
    ("bits", "colours"),
    [
        *((bits, 0) for bits in (1, 2, 4, 8, 16)),
        *((bits, 3) for bits in (1, 2, 4, 8)),
        *((bits, colours) for colours in (2, 4, 6) for bits in (8, 16)),
    ],
)
def test_a_png_shows_what_it_was_made_of(bits, colours, is_transparent, interlaced):
    values = samples(bits, PNG_SAMPLES[colours])
    shades = eight(values, bits)
    before, levels = b"", 0.51
    if colours == 3:
        palette = PALETTE[:, : 2**bits].T
        truth = palette[values[..., 0]]
        before = chunk(b"PLTE", palette.astype(np.uint8).tobytes())
        if is_transparent:
            opacity = np.linspace(0, 255, 2**bits).round().astype(np.uint8)
            before += chunk(b"tRNS", opacity.tobytes())
            truth, levels = on_white(truth, opacity[values[..., 0]].astype(float)), 2
    elif colours in (4, 6):
        truth, levels = on_white(shades[..., :-1], shades[..., -1]), 2
    else:
        truth = shades
        if is_transparent:
            key = values[3, 5]
            before = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key.tolist()))
            truth = np.where((values == key).all(-1, keepdims=True), 255, shades)
    if truth.shape[-1] == 1:
        truth = grey(truth)
    check(Case(png(values, bits, colours, before, interlaced=interlaced), truth, levels))


def test_a_png_without_the_palette_that_its_pixels_are_of_is_refused():
    with pytest.raises(UserError, match="it has no palette"):
        decode_image(png(samples(8), 8, 3), "a")


BOMB = zlib.compress(bytes(2_000_000))


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"tEXt", b"a\0b", crc=1),
        chunk(b"zTXt", b"a\0\0" + BOMB),
        chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB),
        chunk(b"iCCP", b"a\0\1no"),
        chunk(b"iCCP", b"a\0\0" + BOMB),
        chunk(b"gAMA", b"1"),
        chunk(b"pHYs", b""),
        chunk(b"tRNS", b"1"),
        chunk(b"tRNS", bytes(6), crc=1),
        chunk(b"eXIf", b"garbage!garbage!"),
        chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff"),
        chunk(b"tEXt", b"Raw profile type exif\0\nexif\n      10\nzzzz"),
        chunk(b"acTL", b""),
        chunk(b"fcTL", bytes(26)),
    ],
    ids=lambda data: f"{data[4:8].decode()} {len(data)}",
)
def test_broken_metadata_cost_no_png(metadata):
    values = samples(8, 3)
    check(Case(png(values, 8, 2, before=metadata), values))
    check(Case(png(values, 8, 2, after=metadata), values))


# --- other formats --------------------------------------------------------------------------------


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
