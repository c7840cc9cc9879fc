"""Metadata of image files: reads the orientation, and removes metadata that break a reader.

A reader may fail on metadata (invalid EXIF, too long a text, a wrong checksum) although the pixels
are intact. Such a file is read again without everything that does not affect its pixels.
"""

import re
import struct
import zlib
from collections.abc import Iterator

from PIL import ExifTags, Image

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND")
# Valid lengths of tRNS by colour type, in bytes: one value for grey, three for RGB, a palette's
# alpha.
_PNG_TRANSPARENCY = {0: range(2, 3), 2: range(6, 7), 3: range(1, 257)}

_WEBP_METADATA = (b"EXIF", b"XMP ", b"ICCP")
_WEBP_FLAGS = 0b00101100  # say that these are there

# JFIF's and Adobe's segments, which describe colours.
_JPEG_SEGMENTS = (0xE0, 0xEE)

# From NewSubfileType to ReferenceBlackWhite: the tags that are needed to decode the image.
_TIFF_TAGS = frozenset(
    {
        *(254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320),
        *(322, 323, 324, 325, 332, 336, 338, 339, 347, *range(512, 522), 529, 530, 531, 532),
    }
)


def orientation(image: Image.Image) -> int:
    """An image's EXIF orientation; 1 (upright) if its metadata have none that can be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata raise many types of errors
        return 1
    return value if isinstance(value, int) else 1


def without_metadata(data: bytes) -> bytes | None:
    """The file without metadata that do not affect its pixels; None if its format is unknown."""
    bare = next((bare for start, bare in _BARE.items() if re.match(start, data, re.DOTALL)), None)
    try:
        return None if bare is None else bare(data)
    except (struct.error, LookupError):  # the file is too short
        return None


def _bare_png(data: bytes) -> bytes:
    """The chunks of the default image, unchanged; damaged transparency is left out."""
    kept = [_PNG_START]
    colours, palette = data[25], 0
    for kind, place, length in _chunks(data, len(_PNG_START)):
        chunk = data[place : place + length + 12]
        if kind not in _PNG_CHUNKS:
            continue
        if kind == b"PLTE":
            palette = length // 3
        if kind in (b"tRNS", b"eXIf") and not _is_whole(chunk):
            continue
        if kind == b"tRNS":
            sizes = _PNG_TRANSPARENCY.get(colours, range(0))
            if length not in sizes or (colours == 3 and length > palette):
                continue
        kept.append(chunk)
    return b"".join(kept)


def _chunks(data: bytes, place: int) -> Iterator[tuple[bytes, int, int]]:
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        yield kind, place, length
        place += length + 12


def _is_whole(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def _bare_jpeg(data: bytes) -> bytes:
    kept = [data[:2]]
    place = 2
    while data[place : place + 1] == b"\xff":
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == 0xDA:
            break
        (length,) = struct.unpack_from(">H", data, place + 2)
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not is_metadata or marker in _JPEG_SEGMENTS:
            kept.append(data[place : place + 2 + length])
        place += 2 + length
    return b"".join([*kept, data[place:]])


def _bare_webp(data: bytes) -> bytes:
    kept = []
    place = 12
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        chunk = data[place : place + 8 + length + length % 2]
        if kind == b"VP8X":
            chunk = chunk[:8] + bytes([chunk[8] & ~_WEBP_FLAGS]) + chunk[9:]
        if kind not in _WEBP_METADATA:
            kept.append(chunk)
        place += 8 + length + length % 2
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _bare_tiff(data: bytes) -> bytes:
    """The first page only, with its directory shortened in place."""
    order = "<" if data.startswith(b"II") else ">"
    (place,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, place)
    first = place + 2
    entries = [data[first + 12 * n : first + 12 * n + 12] for n in range(count)]
    kept = [entry for entry in entries if struct.unpack_from(order + "H", entry)[0] in _TIFF_TAGS]
    directory = struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4)
    return data[:place] + directory + data[place + len(directory) :]


def _bare_avif(data: bytes) -> bytes:
    """Renames the type of EXIF to one that no reader knows."""
    return re.sub(rb"(infe.{8})Exif", rb"\1exiF", data, flags=re.DOTALL)


# By the start of a file.
_BARE = {
    rb"\x89PNG\r\n\x1a\n": _bare_png,
    rb"\xff\xd8": _bare_jpeg,
    rb"RIFF.{4}WEBP": _bare_webp,
    rb"II\*\0|MM\0\*": _bare_tiff,
    rb".{4}ftyp": _bare_avif,
}
