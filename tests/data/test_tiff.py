"""TIFFs of every depth, photometry, transparency and layout: each as the picture it was made of."""

import itertools
import struct
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from format_cases import HEIGHT, PALETTE, WIDTH, Case, check, eight, grey, on_white, samples, tiff

from simmim.data.decoding.decode import decode_image, open_encoded
from simmim.data.decoding.lazy_image import Box
from simmim.utils.errors import UserError

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


@pytest.mark.parametrize("name", ["RGB, 16 bits, separate, plain", "miniswhite, 16 bits, plain"])
def test_a_crop_of_a_tiff_shows_the_same_as_the_whole(name):
    case = TIFFS[name]()
    whole = decode_image(case.data, "a")
    picture = open_encoded(case.data, "a")
    assert torch.equal(picture.decode(), whole)
    cropped = picture.crop_resized(Box(2, 3, 16, 20), (16, 20))
    assert torch.equal(cropped, whole[:, 2:18, 3:23])
