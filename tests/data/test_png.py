"""PNGs of every depth and colour type, with broken metadata too: each as the picture it was made of."""

import struct
import zlib

import numpy as np
import pytest
from format_cases import HEIGHT, PALETTE, WIDTH, Case, check, eight, grey, on_white, samples

from simmim.data.decoding.decode import decode_image
from simmim.utils.errors import UserError

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
