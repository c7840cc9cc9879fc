"""Arrays of any number of bands from `.npy` files, with no picture made of them.

Nothing in a file is believed before it is compared with the file: an array's header is checked
against the bytes that follow, and no pickle runs.
"""

import math
import os
from io import BufferedReader, BytesIO
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Real, Shaped
from torch import Tensor

from simmim.data.decoding.size_limits import require_size

# A file on a disk, or the content of one.
OpenFile: TypeAlias = BufferedReader | BytesIO

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_array(start: bytes) -> bool:
    """Whether a file that starts so is a `.npy` array."""
    return start.startswith(b"\x93NUMPY")


def is_tiff(start: bytes) -> bool:
    """Whether a file that starts so is a TIFF or BigTIFF."""
    return start.startswith(_TIFF)


def read_array(file: OpenFile, channels: int) -> Real[Tensor, "{channels} h w"]:
    """A `.npy` array of (channels, h, w), (h, w, channels) or, for one channel, (h, w).

    Raises:
        ValueError: another shape, a type that is no number, or fewer values than the header tells.
    """
    shape, is_fortran, dtype = _read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not loaded")
    check_shape(shape, channels)
    expected = math.prod(shape) * dtype.itemsize
    first = file.tell()
    rest = file.seek(0, os.SEEK_END) - first
    if rest < expected:
        raise ValueError(f"it ends after {rest} of {expected} bytes")
    file.seek(first)
    values = np.frombuffer(file.read(expected), dtype).reshape(
        shape, order="F" if is_fortran else "C"
    )
    return to_tensor(values, channels)


def _read_header(file: OpenFile) -> tuple[tuple[int, ...], bool, Any]:
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"its format's version is {version}, which is for structured arrays")
    try:
        return readers[version](file)
    except Exception as error:  # damaged headers show as errors of many kinds
        raise ValueError("its header is damaged") from error


def check_shape(shape: tuple[int, ...], channels: int) -> None:
    """Raises ValueError for a shape of other channels, or of more values than Pillow would read."""
    is_flat = len(shape) == 2 and channels == 1
    if not is_flat and (len(shape) != 3 or channels not in (shape[0], shape[2])):
        raise ValueError(f"its shape is {shape}, which is not one of {channels} channels")
    if math.prod(shape) == 0:
        raise ValueError(f"its shape is {shape}, which holds no value")
    height, width = shape[1:] if len(shape) == 3 and shape[0] == channels else shape[:2]
    require_size(height, width, channels)


def to_tensor(values: Shaped[np.ndarray, "..."], channels: int) -> Real[Tensor, "{channels} h w"]:
    """Channels first; uint8 as it is, any other number as float32."""
    check_shape(values.shape, channels)
    if values.ndim == 2:
        values = values[None]
    elif values.shape[0] != channels:
        values = np.moveaxis(values, -1, 0)
    if values.dtype.kind not in "uif":
        raise ValueError(f"its values are of type {values.dtype}, no real numbers")
    kept = values if values.dtype == np.uint8 else values.astype(np.float32)
    return torch.from_numpy(np.array(kept, order="C"))
