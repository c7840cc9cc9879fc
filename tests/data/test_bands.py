"""Arrays and TIFF files of many bands: their values kept, nothing in a file believed."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from simmim.data.decoding.decode import decode_image, read_image
from simmim.utils.errors import UserError

DTYPES = [np.uint8, np.uint16, np.int16, np.float32]


def bands(channels: int, dtype, height: int = 6, width: int = 9) -> np.ndarray:
    values = np.random.default_rng(channels).uniform(0, 250, (channels, height, width))
    return (values * (1 if dtype == np.uint8 else 100)).astype(dtype)


def as_npy(values: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, values, **options)
    return file.getvalue()


def check(image: torch.Tensor, values: np.ndarray) -> None:
    assert image.dtype == (torch.uint8 if values.dtype == np.uint8 else torch.float32)
    np.testing.assert_array_equal(image.numpy(), values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 14])
def test_an_array_keeps_its_values_in_either_layout(dtype, channels):
    values = bands(channels, dtype)
    check(decode_image(as_npy(values), "a", channels), values)
    check(decode_image(as_npy(values.transpose(1, 2, 0)), "a", channels), values)
    check(decode_image(as_npy(np.asfortranarray(values)), "a", channels), values)
    check(
        decode_image(as_npy(values.astype(values.dtype.newbyteorder(">"))), "a", channels), values
    )
    if channels == 1:
        check(decode_image(as_npy(values[0]), "a", 1), values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{"planarconfig": "separate"}, {"planarconfig": "contig"}])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_a_tiff_keeps_its_values_in_either_layout(tmp_path: Path, dtype, options, compression):
    values = bands(14, dtype)
    stored = values if options["planarconfig"] == "separate" else values.transpose(1, 2, 0)
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, stored, photometric="minisblack", compression=compression, **options)
    check(read_image(path, 14), values)


def test_a_tiff_of_three_bands_of_floats_is_no_picture_and_keeps_its_values(tmp_path):
    values = bands(3, np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values.transpose(1, 2, 0), photometric="rgb")
    check(read_image(tmp_path / "a.tif", 3), values)


def test_one_wide_band_keeps_its_values_where_one_channel_is_asked_for(tmp_path):
    values = bands(1, np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values[0])
    check(read_image(tmp_path / "a.tif", 1), values)
    assert read_image(tmp_path / "a.tif", 3).dtype == torch.uint8


def test_a_picture_is_grey_where_one_channel_is_asked_for(tmp_path):
    Image.new("RGB", (3, 2), (255, 0, 0)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", 1)
    assert image.shape == (1, 2, 3)
    assert image.unique().tolist() == [76]


def test_values_that_are_not_finite_are_kept_for_the_normalisation():
    values = bands(2, np.float32)
    values[0, 0, 0], values[1, 2, 3] = np.nan, np.inf
    check(decode_image(as_npy(values), "a", 2), values)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (as_npy(bands(5, np.uint8)), r"its shape is \(5, 6, 9\), which is not one of 14 channels"),
        (as_npy(np.zeros((2, 2), np.uint8)), "which is not one of 14 channels"),
        (as_npy(bands(14, np.uint8))[:-1], "it ends after 755 of 756 bytes"),
        (as_npy(bands(14, np.uint8).astype(np.complex64)), "no real numbers"),
        (
            as_npy(np.full((14, 1, 1), None), allow_pickle=True),
            "Python objects, which are not loaded",
        ),
        (as_npy(np.zeros((14, 0, 3))), "holds no value"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': nonsense", "a"),
        (b"II*\0 no tiff at all", "a"),
        (b"\x89PNG no png", "no image of a known format|3 channels"),
    ],
)
def test_what_cannot_be_an_image_is_named_with_the_reason(content, reason):
    with pytest.raises(UserError, match=rf"cannot read image a \(.*{reason}"):
        decode_image(content, "a", 14)


def test_a_header_that_promises_more_than_there_is_takes_no_memory():
    header = as_npy(np.zeros((14, 8, 8), np.uint8)).replace(b"8, 8)", b"9999999, 9999999)", 1)
    with pytest.raises(UserError, match="cannot read image a"):
        decode_image(header, "a", 14)
    huge = io.BytesIO()
    fields = {"descr": "<f8", "fortran_order": False, "shape": (14, 10**6, 10**6)}
    np.lib.format.write_array_header_1_0(huge, fields)
    with pytest.raises(UserError, match="1000000 × 1000000 pixels of 14 channels are more than"):
        decode_image(huge.getvalue(), "a", 14)


def test_damaged_tiffs_are_read_or_named_and_nothing_else(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, bands(14, np.int16), photometric="minisblack", planarconfig="separate")
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    failures = 0
    for _ in range(40):
        broken = bytearray(whole)
        for place in generator.integers(0, 300, 4):
            broken[place] = generator.integers(0, 256)
        try:
            decode_image(bytes(broken), "a", 14)
        except UserError:
            failures += 1
    assert failures > 0
