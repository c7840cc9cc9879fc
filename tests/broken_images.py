"""Images broken in twelve ways, each with a part of the reason that is told."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


class Breaking(NamedTuple):
    """How a file is broken: what is written to a path, its suffix, and why it cannot be read."""

    write: Callable[[Path], object]
    suffix: str
    reason: str


def picture(seed: int = 0, size: int = 40) -> Image.Image:
    """Noise, which compresses badly: a cut-off file lacks a part."""
    shades = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(shades)


def encoded(format: str, image: Image.Image | None = None) -> bytes:
    """A picture as a file's content."""
    file = io.BytesIO()
    (image or picture()).save(file, format)
    return file.getvalue()


def array(values: np.ndarray) -> bytes:
    """A `.npy` file's content."""
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    return file.getvalue()


def huge_array() -> bytes:
    """The header of an array of ten terabytes, and nothing else."""
    file = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": (3, 1_800_000, 1_800_000)}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


def huge_png(side: int = 60_000) -> bytes:
    """A PNG file of few bytes that says to have many pixels."""
    whole = bytearray(encoded("PNG"))
    whole[16:24] = struct.pack(">II", side, side)
    whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
    return bytes(whole)


def huge_tiff(side: int = 100_000) -> bytes:
    """A TIFF file of one strip that says to have many pixels."""
    fields = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 1), (262, 3, 1)]
    fields += [(273, 4, 8), (277, 3, 1), (278, 4, side), (279, 4, 2**32 - 1)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in fields)
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4)


def _content(data: bytes, suffix: str, reason: str) -> Breaking:
    return Breaking(lambda path: path.write_bytes(data), suffix, reason)


BREAKINGS = {
    "empty": _content(b"", "jpg", "it is empty"),
    "cut-off jpeg": _content(encoded("JPEG")[:300], "jpg", "runcated"),
    "cut-off png": _content(encoded("PNG")[:1500], "png", "runcated"),
    "cut-off webp": _content(encoded("WEBP")[:200], "webp", ""),
    "page": _content(b"<html>404 Not Found</html>", "jpg", "no image of a known format"),
    "noise": _content(bytes(range(7, 207)), "png", "no image of a known format"),
    "bomb": _content(huge_png(), "png", "data.max_pixels"),
    "one pixel": _content(encoded("PNG", picture(size=1)), "gif", "data.min_side=2"),
    "ribbon": _content(encoded("PNG", Image.new("L", (600, 2))), "png", "data.max_aspect=100"),
    "other values": _content(array(np.ones((3, 40, 40), np.float32)), "npy", "float32"),
    "objects": _content(array(np.full((3, 4, 4), None)), "npy", "Python objects"),
    "gone": Breaking(lambda path: path.symlink_to("nowhere"), "jpg", "it is gone"),
}


def write_folder(root: Path, images: int, broken: int) -> dict[str, str]:
    """So many files of two classes, some broken in turn of each way; returns those and a reason."""
    ways = list(BREAKINGS.values())
    every = images // broken
    reasons = {}
    for number in range(images):
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        turn, rest = divmod(number, every)
        if rest == every // 2 and turn < broken:
            way = ways[turn % len(ways)]
            path = folder / f"{number:04}.{way.suffix}"
            way.write(path)
            reasons[str(path)] = way.reason
        else:
            # Sometimes by another format's name, which does no harm.
            picture(number).save(folder / f"{number:04}.jpg", "PNG" if number % 50 == 3 else "JPEG")
    return reasons
