"""TIFF files: images of any depth, photometry, layout and transparency, and bands of measured values.

A file's tags decide: images of unsigned integers of up to 16 bits become RGB (or grey); a grey
image of any type becomes RGB if three channels are requested; all else keeps its values. Plain
8-bit images are read by Pillow, all others by tifffile, which reads what Pillow misreads.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Real, UInt8
from PIL import Image, TiffImagePlugin
from torch import Tensor

from simmim.data.decoding.colours import full_scale, to_8_bits, to_rgb, upright
from simmim.data.decoding.npy import OpenFile, check_shape, to_tensor
from simmim.data.decoding.pillow import read_picture
from simmim.data.decoding.size_limits import require_size

# Values of PhotometricInterpretation.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _INKS, _YCBCR, _CIELAB, _ICCLAB = (
    *(0, 1, 2, 3, 5, 6, 8, 9),
)
# Samples per pixel of a colour.
_COLOURS = {
    **dict.fromkeys((_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE), 1),
    **dict.fromkeys((_RGB, _YCBCR, _CIELAB, _ICCLAB), 3),
    _INKS: 4,
}
# Not images that can be shown: a mask, a camera's mosaic, logarithms of light.
_NO_PICTURE = {4: "a transparency mask", 32803: "a camera's raw mosaic", 10: "ITU L*a*b*"}
_NO_PICTURE |= {32844: "LogL", 32845: "LogLuv"}

# Values of ExtraSamples.
_PREMULTIPLIED, _STRAIGHT = 1, 2

# Values of Compression: none, and JPEG's, for which tifffile converts YCbCr to RGB.
_UNCOMPRESSED, _JPEG = 1, (6, 7, 34892, 33007)
# Those that every build of Pillow has: none, CCITT, LZW, JPEG, deflate, PackBits.
_PILLOWS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946})

# Bits of NewSubfileType: a smaller version of another page, and a mask.
_REDUCED_OR_MASK = 0b101


_INSTALL = 'pip install "simmim[tiff]"'


def read_tiff(file: OpenFile, channels: int) -> Real[Tensor, "{channels} h w"]:
    """The first image of a TIFF file, or the bands that are stored as its pages.

    Raises:
        ValueError: another number of channels, an image that cannot be shown correctly, or damage.
        ImportError: the libraries that read it are not installed.
    """
    if channels in (1, 3) and _is_pillows(file, channels):
        return read_picture(file, channels)
    try:
        import tifffile
    except ImportError:
        raise ImportError(f"TIFF files of this kind need tifffile; {_INSTALL}") from None
    try:
        with tifffile.TiffFile(file) as tiff:
            return _read(tiff, channels)
    # Damaged tags raise many types of errors.
    except Exception as error:
        reason = str(error) or type(error).__name__
        if "requires the 'imagecodecs' package" in reason:
            raise ImportError(f"TIFF files of this kind need imagecodecs; {_INSTALL}") from None
        raise ValueError(reason) from error


def _is_pillows(file: OpenFile, channels: int) -> bool:
    """Whether a file is of a kind that Pillow reads correctly."""
    try:
        start = file.read(8)
        # Pillow misreads some BigTIFF files.
        if not start.startswith((b"II*\0", b"MM\0*")):
            return False
        tags = TiffImagePlugin.ImageFileDirectory_v2(start)
        file.seek(tags.next)
        tags.load(file)
        return _is_plain(tags) and not (channels == 3 and _tells_of_pages(tags))
    except Exception:  # damaged tags raise many types of errors
        return False
    finally:
        file.seek(0)


def _is_plain(tags: TiffImagePlugin.ImageFileDirectory_v2) -> bool:
    samples = tags.get(277, 1)
    bits, formats = set(tags.get(258, (1,))), set(tags.get(339, (1,)))
    photometry, compression = tags.get(262), tags.get(259, 1)
    extra = tags.get(338, ())
    is_packed = samples == 1 and bits in ({1}, {2}, {4})
    if (
        formats != {1}
        or not (bits == {8} or is_packed)
        or not (samples == 1 or tags.get(284, 1) == 1)
        or tags.get(266, 1) != 1
        or compression not in _PILLOWS
        or (tags.get(317, 1) != 1 and compression not in (5, 8, 32946))
        or tags.get(254, 0) & _REDUCED_OR_MASK
        or tags.get(255, 1) != 1
    ):
        return False
    if photometry in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
        return samples == 1 and not extra
    if photometry == _RGB:
        return (samples, extra) in ((3, ()), (4, ()), (4, (_STRAIGHT,)))
    if photometry == _PALETTE:
        # Palette values have 16 bits; some writers store only 8.
        return samples == 1 and not extra and max(tags[320]) > 255
    if photometry == _YCBCR:
        return samples == 3 and not extra and compression in (6, 7)
    return False


def _tells_of_pages(tags: TiffImagePlugin.ImageFileDirectory_v2) -> bool:
    """Whether pages may be bands, by a description that tifffile, ImageJ or OME wrote."""
    description = str(tags.get(270, ""))
    is_known = description.startswith(('{"shape"', "ImageJ")) or "<OME" in description
    return is_known and tags.get(277, 1) == 1 and (tags.next != 0 or "images=" in description)


def _read(tiff: Any, channels: int) -> Real[Tensor, "{channels} h w"]:
    page = _full_page(tiff)
    if channels in (1, 3) and _is_picture(page, channels) and not _has_bands(tiff, channels):
        return _read_picture(page, channels)
    if page.samplesperpixel == channels > 1:
        return to_tensor(np.moveaxis(_load(page), -1, 0), channels)
    series = tiff.series[0]
    check_shape(series.shape, channels)
    for part in series.pages:
        if part is not None:
            _require_all(part, tiff.filehandle.size)
    return to_tensor(series.asarray(maxworkers=1), channels)


def _full_page(tiff: Any) -> Any:
    """The first page that is neither a smaller version of another (some files start so) nor a mask."""
    for page in tiff.pages:
        for candidate in (page, *(page.pages or ())):
            if not candidate.subfiletype & _REDUCED_OR_MASK:
                return candidate
    return tiff.pages[0]


def _is_picture(page: Any, channels: int) -> bool:
    """Whether a page is converted to RGB or grey, not kept as bands of measured values."""
    photometry = _photometry(page)
    if photometry in _NO_PICTURE:
        raise ValueError(f"it is {_NO_PICTURE[photometry]}, of which no picture is made")
    colours = _COLOURS.get(photometry)
    if colours == 1:
        return page.samplesperpixel == 1 or page.samplesperpixel != channels
    return colours is not None and _is_narrow(page)


def _is_narrow(page: Any) -> bool:
    return page.dtype is not None and page.dtype.kind == "u" and _bits(page) <= 16


def _bits(page: Any) -> int:
    """Bits per sample; samples of different widths are read as whole bytes."""
    bits = page.bitspersample
    return bits if isinstance(bits, int) else 8 * page.dtype.itemsize


def _photometry(page: Any) -> int:
    """The declared photometric interpretation; else the one that libtiff assumes."""
    if 262 in page.tags or page.compression in _JPEG:
        return int(page.photometric)
    if page.samplesperpixel >= 3:
        return _RGB
    return _WHITE_IS_ZERO if page.compression in (2, 3, 4) else _BLACK_IS_ZERO


def _has_bands(tiff: Any, channels: int) -> bool:
    """Whether single-sample pages are the bands of an image, by their description."""
    page = tiff.pages[0]
    if channels != 3 or page.samplesperpixel != 1:
        return False
    if not (page.is_shaped or page.is_imagej or page.is_ome):
        return False
    series = tiff.series[0]
    if len(series.shape) != 3:
        return False
    # Axes of unknown meaning, channels or samples.
    return any(
        size == 3 and axis in "QCS"
        for size, axis in ((series.shape[0], series.axes[0]), (series.shape[-1], series.axes[-1]))
    )


def _load(page: Any) -> Real[np.ndarray, "h w samples"]:
    """A page's samples with their stored values, turned upright."""
    if page.imagedepth != 1:
        raise ValueError("it is a volume, not an image")
    require_size(page.imagelength, page.imagewidth, page.samplesperpixel)
    _require_all(page, page.parent.filehandle.size)
    planes = page.asarray(squeeze=False, maxworkers=1)[:, 0]
    values = planes[0] if page.planarconfig == 1 else np.moveaxis(planes[..., 0], 0, -1)
    values = values.view(np.uint8) if values.dtype == np.bool_ else values
    return upright(values, int(page.tags.valueof(274, 1)))


def _require_all(page: Any, size: int) -> None:
    """Raises ValueError if a part is missing: some decoders would fill it in."""
    ends = (first + n for first, n in zip(page.dataoffsets, page.databytecounts, strict=False))
    if (end := max(ends, default=0)) > size:
        raise ValueError(f"image file is truncated: it ends after {size} of {end} bytes")


def _read_picture(page: Any, channels: int) -> Real[Tensor, "{channels} h w"]:
    photometry = _photometry(page)
    colours = _COLOURS[photometry]
    if page.samplesperpixel < colours:
        raise ValueError(f"it has {page.samplesperpixel} of {colours} samples of a colour")
    values = _load(page)
    alpha, is_premultiplied = _find_alpha(page, values, colours)
    if is_premultiplied and photometry not in (_BLACK_IS_ZERO, _RGB):
        raise ValueError("its alpha is multiplied with other than grey or RGB")
    colour = values[..., :colours]
    is_grey = photometry in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
    if channels == 1 and is_grey and not (_is_narrow(page) and _bits(page) <= 8):
        return _measured_grey(page, colour[..., 0], alpha, is_premultiplied)
    shades = _to_shades(page, colour)
    if alpha is not None:
        opacity = to_8_bits(alpha, full_scale(alpha, _bits(page)))
        mode = {1: "LA", 3: "RGBA"}[shades.shape[-1]]
        mode = mode.replace("A", "a") if is_premultiplied else mode
        picture = _image(mode, np.dstack([shades, opacity]))
    else:
        picture = _image({1: "L", 3: "RGB"}[shades.shape[-1]], shades)
    pixels = np.array(to_rgb(picture).convert("L" if channels == 1 else "RGB"))
    return (
        torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1).contiguous()
    )


def _image(mode: str, pixels: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    height, width = pixels.shape[:2]
    return Image.frombytes(mode, (width, height), np.ascontiguousarray(pixels).tobytes())


def _find_alpha(
    page: Any, values: Real[np.ndarray, "h w samples"], colours: int
) -> tuple[Real[np.ndarray, "h w"] | None, bool]:
    """The alpha samples, and whether colours are premultiplied with them."""
    extra = [int(kind) for kind in page.extrasamples]
    if not extra and (colours, page.samplesperpixel) in ((3, 4), (1, 2)):
        extra = [_STRAIGHT]  # not declared; all other readers assume it
    for kind in (_STRAIGHT, _PREMULTIPLIED):
        if kind in extra:
            return values[..., colours + extra.index(kind)], kind == _PREMULTIPLIED
    return None, False


def _measured_grey(
    page: Any,
    values: Real[np.ndarray, "h w"],
    alpha: Real[np.ndarray, "h w"] | None,
    is_premultiplied: bool,
) -> Real[Tensor, "1 h w"]:
    """One band in the file's units, where higher is lighter."""
    is_inverted = _photometry(page) == _WHITE_IS_ZERO
    if (is_inverted or alpha is not None) and values.dtype.kind != "u":
        raise ValueError(
            f"what is white among its values of type {values.dtype} is not known, and it has "
            + ("zero for white" if is_inverted else "transparency")
        )
    white = full_scale(values, min(_bits(page), 32))
    kept = values.astype(np.float32)
    if is_inverted:
        kept = np.float32(white) - kept
    if alpha is not None:
        share = alpha.astype(np.float32) / np.float32(white)
        kept = (kept if is_premultiplied else kept * share) + white * (1 - share)
    return to_tensor(kept[None], 1)


def _to_shades(page: Any, colour: Real[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c2"]:
    """Converts a colour's samples to 8-bit grey or RGB."""
    photometry, bits = _photometry(page), _bits(page)
    if photometry == _PALETTE:
        return _look_up(page.colormap, colour[..., 0])
    if photometry in (_CIELAB, _ICCLAB):
        return _lab_to_rgb(colour, bits, is_signed=photometry == _CIELAB)
    shades = to_8_bits(colour, full_scale(colour, bits))
    if photometry == _WHITE_IS_ZERO:
        shades = 255 - shades
    elif photometry == _INKS:
        if page.tags.valueof(332, 1) != 1:
            raise ValueError("its inks are other than cyan, magenta, yellow and black")
        shades = np.asarray(to_rgb(_image("CMYK", shades)))
    elif photometry == _YCBCR and not (page.compression in _JPEG and page.planarconfig == 1):
        shades = _ycbcr_to_rgb(page, shades)
    return shades


def _look_up(
    colours: Real[np.ndarray, "3 n"], numbers: Real[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Looks up palette colours, which have 16 bits by the standard, but 8 from some writers."""
    if colours is None or numbers.max(initial=0) >= colours.shape[1]:
        raise ValueError("its pixels are numbers that its palette does not have")
    eight = colours if colours.max(initial=0) < 256 else colours >> 8
    return eight.astype(np.uint8).T[numbers]


def _lab_to_rgb(
    lab: Real[np.ndarray, "h w 3"], bits: int, is_signed: bool
) -> UInt8[np.ndarray, "h w 3"]:
    """Converts CIE L*a*b*, with a* and b* signed or, as in ICC, with 128 for zero."""
    if bits != 8 and not (bits == 16 and is_signed):
        raise ValueError(f"L*a*b* of {bits} bits is not read")
    shades = lab.astype(np.uint8)
    if bits == 16:
        shades[..., 0] = to_8_bits(lab[..., 0], 65535)
        rounded = (lab[..., 1:].astype(np.int16).astype(np.int32) + 128) >> 8
        shades[..., 1:] = rounded.clip(-128, 127).astype(np.int8).view(np.uint8)
    if not is_signed:
        shades[..., 1:] ^= 128
    return np.asarray(to_rgb(_image("LAB", shades)))


def _ycbcr_to_rgb(page: Any, shades: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Converts with the file's coefficients and its code values for black and white."""
    if _bits(page) != 8:
        raise ValueError(f"YCbCr of {_bits(page)} bits is not read")
    red, green, blue = _rationals(page, 529) or (0.299, 0.587, 0.114)
    low, high = np.reshape(_rationals(page, 532) or (0, 255, 128, 255, 128, 255), (3, 2)).T
    coded = (shades - low) / (high - low) * (255, 127, 127)
    luma, blueness, redness = np.moveaxis(coded, -1, 0)
    r = luma + redness * (2 - 2 * red)
    b = luma + blueness * (2 - 2 * blue)
    g = (luma - red * r - blue * b) / green
    return np.stack([r, g, b], -1).round().clip(0, 255).astype(np.uint8)


def _rationals(page: Any, tag: int) -> list[float] | None:
    """A tag's fractions, from tifffile's alternating numerators and denominators."""
    flat: Iterable[int] | None = page.tags.valueof(tag)
    if flat is None:
        return None
    numbers = list(flat)
    return [n / d for n, d in zip(numbers[::2], numbers[1::2], strict=True)]
