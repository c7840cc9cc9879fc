"""Reads `.npy` arrays of any number of bands, without converting them to RGB.

Nothing in a file is trusted: an array's header is checked against the number of bytes that follow,
and no pickle is loaded.
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
    """Whether a file with this start is a `.npy` array."""
    return start.startswith(b"\x93NUMPY")


def is_tiff(start: bytes) -> bool:
    """Whether a file with this start is a TIFF or BigTIFF."""
    return start.startswith(_TIFF)


def read_array(file: OpenFile, channels: int) -> Real[Tensor, "{channels} h w"]:
    """A `.npy` array of (channels, h, w), (h, w, channels) or, for one channel, (h, w).

    Raises:
        ValueError: another shape, values that are not numbers, or fewer than the header says.
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
    except Exception as error:  # damaged headers raise many types of errors
        raise ValueError("its header is damaged") from error


def check_shape(shape: tuple[int, ...], channels: int) -> None:
    """Raises ValueError for another number of channels, or for a size outside of the limits."""
    is_flat = len(shape) == 2 and channels == 1
    if not is_flat and (len(shape) != 3 or channels not in (shape[0], shape[2])):
        raise ValueError(f"its shape is {shape}, which is not one of {channels} channels")
    if math.prod(shape) == 0:
        raise ValueError(f"its shape is {shape}, which holds no value")
    height, width = shape[1:] if len(shape) == 3 and shape[0] == channels else shape[:2]
    require_size(height, width, channels)


def to_tensor(values: Shaped[np.ndarray, "..."], channels: int) -> Real[Tensor, "{channels} h w"]:
    """A tensor with channels first: uint8 unchanged, all other numbers as float32."""
    check_shape(values.shape, channels)
    if values.ndim == 2:
        values = values[None]
    elif values.shape[0] != channels:
        values = np.moveaxis(values, -1, 0)
    if values.dtype.kind not in "uif":
        raise ValueError(f"its values are of type {values.dtype}, no real numbers")
    kept = values if values.dtype == np.uint8 else values.astype(np.float32)
    return torch.from_numpy(np.array(kept, order="C"))
