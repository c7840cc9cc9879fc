"""Decoding: each Pillow mode looks as it should, stands upright, and broken files are named."""

import io
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from simmim.data.decoding.colours import to_rgb
from simmim.data.decoding.decode import IMAGE_SUFFIXES, read_image
from simmim.utils.errors import UserError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def colour_of(image: Image.Image) -> tuple[int, ...]:
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    assert rgb.size == image.size
    return rgb.getpixel((0, 0))


def plain(mode: str, value: Any) -> Image.Image:
    return Image.new(mode, (3, 2), value)


def random_rgb(height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, WHITE),
        ("1", 0, (0, 0, 0)),
        ("L", 77, (77, 77, 77)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBX", (1, 2, 3, 4), (1, 2, 3)),
        ("CMYK", (0, 255, 255, 0), RED),
        ("CMYK", (0, 0, 0, 0), WHITE),
        ("YCbCr", (128, 128, 128), (128, 128, 128)),
        ("YCbCr", (76, 85, 255), (254, 0, 0)),
        ("HSV", (0, 255, 255), RED),
        ("HSV", (170, 255, 255), BLUE),
    ],
)
def test_opaque_modes_give_their_colour(mode: str, value: Any, expected: tuple[int, ...]) -> None:
    assert colour_of(plain(mode, value)) == expected


@pytest.mark.parametrize(
    ("lab", "expected"),
    [((255, 128, 128), WHITE), ((0, 128, 128), (0, 0, 0)), ((138, 209, 198), RED)],
)
def test_lab_gives_its_colour_within_rounding(
    lab: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    np.testing.assert_allclose(colour_of(plain("LAB", lab)), expected, atol=6)


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (100, 0), WHITE),
        ("LA", (100, 51), (224, 224, 224)),
        ("La", (20, 51), (224, 224, 224)),
        ("La", (0, 0), WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),
        ("RGBa", (51, 0, 0, 51), (255, 204, 204)),
        ("RGBa", (0, 0, 0, 0), WHITE),
    ],
)
def test_alpha_is_composited_on_white(mode: str, value: Any, expected: tuple[int, ...]) -> None:
    assert colour_of(plain(mode, value)) == expected


@pytest.mark.parametrize("alpha", [0, 51, 255])
def test_a_palette_with_an_alpha_band_is_composited_on_white(alpha: int) -> None:
    # Put together, for Pillow below 12 converts to PA without the alpha.
    image = Image.merge("PA", [Image.new("L", (1, 1), value) for value in (1, alpha)])
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert colour_of(image) == (255, 255 - alpha, 255 - alpha)


def palette_image() -> Image.Image:
    """Two columns, green and red, of a palette."""
    image = Image.new("P", (2, 1))
    image.putpalette([*GREEN, *RED])
    image.putpixel((1, 0), 1)
    return image


def test_a_palette_gives_its_colours() -> None:
    rgb = to_rgb(palette_image())
    assert [rgb.getpixel((x, 0)) for x in (0, 1)] == [GREEN, RED]


@pytest.mark.parametrize(
    ("suffix", "transparency"), [(".gif", 0), (".png", 0), (".png", b"\x00\xff")]
)
def test_a_palette_s_transparent_colour_becomes_white(
    tmp_path: Path, suffix: str, transparency: int | bytes
) -> None:
    path = tmp_path / f"image{suffix}"
    palette_image().save(path, transparency=transparency)
    assert as_array(read_image(path)).tolist() == [[list(WHITE), list(RED)]]


@pytest.mark.parametrize(("mode", "key", "other"), [("RGB", RED, GREEN), ("L", 7, 9)])
def test_a_png_s_transparent_colour_becomes_white(
    tmp_path: Path, mode: str, key: Any, other: Any
) -> None:
    image = Image.new(mode, (2, 1), other)
    image.putpixel((0, 0), key)
    image.save(tmp_path / "image.png", transparency=key)
    pixels = as_array(read_image(tmp_path / "image.png")).tolist()[0]
    assert pixels == [list(WHITE), [9, 9, 9] if mode == "L" else list(GREEN)]


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_16_bit_greys_are_scaled_and_not_clipped(mode: str) -> None:
    for value, expected in ((0, 0), (257, 1), (32768, 128), (65535, 255)):
        image = Image.new(mode, (2, 2))
        image.putpixel((0, 0), value)
        assert colour_of(image) == (expected,) * 3


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 257, 65535], [0, 1, 255]),
        ([0, 2**30, 2**31 - 1], [0, 128, 255]),
        ([-5, 0, 65535], [0, 0, 255]),
    ],
)
def test_integers_are_read_as_16_bits_or_32_where_a_value_needs_them(
    values: list[int], expected: list[int]
) -> None:
    image = Image.fromarray(np.array([values], np.int32))
    assert image.mode == "I"
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 200.0], [0, 100, 200]),
        ([0.0, 32768.0, 65535.0], [0, 128, 255]),
        ([0.0, 500_000.0, 1_000_000.0], [0, 128, 255]),
        ([float("nan"), float("inf"), 0.5], [0, 0, 128]),
        ([-1.0, 0.0, 1.0], [0, 0, 255]),
    ],
)
def test_floats_are_read_as_shares_or_as_8_or_16_bits(
    values: list[float], expected: list[int]
) -> None:
    image = Image.fromarray(np.array([values], np.float32))
    assert image.mode == "F"
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_16_bit_file_keeps_its_shades(tmp_path: Path, suffix: str) -> None:
    shades = np.linspace(0, 65535, 256).astype(np.uint16)
    Image.fromarray(shades[None]).save(tmp_path / f"image{suffix}")
    image = as_array(read_image(tmp_path / f"image{suffix}"))
    assert image.shape == (1, 256, 3)
    assert image[0, :, 1].tolist() == list(range(256))


UPRIGHT = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_the_exif_orientation_is_applied(tmp_path: Path, mode: str, orientation: int) -> None:
    stored = random_rgb() if mode == "RGB" else random_rgb()[..., 0].astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "image.png", exif=exif)
    eight_bits = stored if mode == "RGB" else np.stack([stored // 257] * 3, axis=-1)
    image = as_array(read_image(tmp_path / "image.png"))
    np.testing.assert_array_equal(image, UPRIGHT[orientation](eight_bits))


def test_an_unknown_orientation_leaves_the_image_as_it_lies(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    Image.fromarray(random_rgb()).save(tmp_path / "image.png", exif=exif)
    np.testing.assert_array_equal(as_array(read_image(tmp_path / "image.png")), random_rgb())


def test_exif_entries_that_pillow_cannot_write_anew_do_not_lose_the_image(tmp_path: Path) -> None:
    # Orientation 6, and an image width that is text and no number.
    entries = ((0x0100, 2, 2, b"7"), (0x0112, 3, 1, b"\x06"))
    packed = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    exif = b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4)
    Image.fromarray(random_rgb()).save(tmp_path / "image.png", exif=exif)
    image = as_array(read_image(tmp_path / "image.png"))
    np.testing.assert_array_equal(image, np.rot90(random_rgb(), -1))


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - {".npy"}))
def test_every_kind_of_file_that_is_looked_for_can_be_read(tmp_path: Path, suffix: str) -> None:
    stored = np.full((5, 7, 3), (200, 100, 50), np.uint8)
    Image.fromarray(stored).save(tmp_path / f"image{suffix}")
    image = read_image(tmp_path / f"image{suffix}")
    assert image.dtype == torch.uint8
    assert image.shape == (3, 5, 7)
    np.testing.assert_allclose(as_array(image).astype(int), stored.astype(int), atol=4)


def test_rows_are_height_and_channels_are_red_green_blue(tmp_path: Path) -> None:
    Image.fromarray(random_rgb()).save(tmp_path / "image.png")
    np.testing.assert_array_equal(as_array(read_image(tmp_path / "image.png")), random_rgb())


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".tiff"])
def test_the_first_frame_is_read(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if suffix == ".webp" else {}
    path = tmp_path / f"image{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as image:
        assert image.n_frames == 3
    assert (as_array(read_image(path)) == RED).all()


def encode(suffix: str) -> bytes:
    buffer = io.BytesIO()
    format_ = Image.registered_extensions()[suffix]
    Image.fromarray(random_rgb(40, 40)).save(buffer, format_)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(encode(suffix)[:-400])
    with pytest.raises(UserError, match=f"^cannot read image {re.escape(str(path))} "):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"no picture but text\n" * 50])
@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - {".npy"}))
def test_empty_and_text_files_are_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"notes{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"cannot read image {path} (")
    assert message.endswith("); remove or replace it")
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"cannot read image {tmp_path}/none.png (")):
        read_image(tmp_path / "none.png")


def test_an_error_without_words_is_told_by_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError

    (tmp_path / "a.png").write_bytes(b"some")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UserError, match=re.escape("a.png (OSError); remove or replace it")):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp", ".gif"])
@pytest.mark.filterwarnings("ignore")
def test_files_with_wrong_bytes_are_read_or_named_and_nothing_else(
    tmp_path: Path, suffix: str
) -> None:
    whole = encode(suffix)
    generator = np.random.default_rng(0)
    path = tmp_path / f"image{suffix}"
    failures = 0
    for _ in range(60):
        broken = bytearray(whole)
        for place in generator.integers(0, min(len(whole), 200), 3):
            broken[place] = generator.integers(0, 256)
        path.write_bytes(broken)
        try:
            read_image(path)
        except UserError as error:
            failures += 1
            assert str(path) in str(error)
    assert failures > 0
