"""Crops of JPEG files: the same as of decoded images, without decoding all of them."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from simmim.data.dataset import SampleKey, TransformedImages
from simmim.data.decoding import decode
from simmim.data.decoding.decode import LazyJpeg, decode_image, open_encoded, open_image
from simmim.data.decoding.jpeg import find_scale
from simmim.data.decoding.lazy_image import Box, DecodedImage
from simmim.data.sources.image_folder import ImageFolder
from simmim.data.transforms import CenterCrop, RandomCrop, light_augmentation, strong_augmentation
from simmim.utils.errors import UserError

SCALE, RATIO = (0.67, 1.0), (3 / 4, 4 / 3)


def photograph(height: int, width: int) -> Image.Image:
    """Soft shades with edges and a little noise, in colour."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width] / height
    waves = [np.sin(9 * x + 4 * y), np.cos(7 * y - 3 * x), np.sin(11 * x * y)]
    shades = 128 + 70 * np.stack(waves, -1)
    shades += 50 * (((x - 0.6) ** 2 + (y - 0.5) ** 2) < 0.1)[..., None]
    shades += generator.normal(0, 4, (height, width, 1))
    return Image.fromarray(shades.clip(0, 255).astype(np.uint8))


def as_jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, "subsampling": "4:2:0"} | options)
    return buffer.getvalue()


def difference(data: bytes, box: Box, size: tuple[int, int]) -> float:
    """Mean absolute difference to the crop of the decoded image, in 8-bit levels."""
    picture = open_encoded(data, "a")
    assert isinstance(picture, LazyJpeg)
    fast = picture.crop_resized(box, size)
    plain = DecodedImage(decode_image(data, "a")).crop_resized(box, size)
    assert fast.shape == plain.shape == (3, *size)
    assert fast.dtype == torch.uint8
    return (fast.float() - plain.float()).abs().mean().item()


@pytest.mark.parametrize("options", [{}, {"subsampling": "4:4:4"}, {"progressive": True}])
def test_a_crop_that_needs_full_resolution_is_the_same_to_the_bit(options: dict[str, Any]) -> None:
    data = as_jpeg(photograph(187, 250), **options)
    assert difference(data, Box(11, 23, 150, 201), (96, 96)) == 0


@pytest.mark.parametrize(
    ("scale", "most"), [(2, 0.8), (4, 0.9), (8, 1.2)], ids=["half", "quarter", "eighth"]
)
def test_a_crop_of_a_smaller_decoded_image_is_within_a_level_or_so(scale: int, most: float) -> None:
    height, width = 97 * scale + 3, 131 * scale + 5
    box = Box(scale + 1, 2 * scale - 1, 90 * scale + 3, 110 * scale + 1)
    assert find_scale(box, (64, 64)) == find_scale(box, (90, 80)) == scale
    for size in ((64, 64), (90, 80)):
        assert difference(as_jpeg(photograph(height, width)), box, size) < most


def test_a_crop_lies_where_it_should_to_a_fraction_of_a_decoded_pixel() -> None:
    image = photograph(801, 1203)
    box = Box(85, 77, 617, 907)
    moved = Box(box.top + 2, box.left + 2, box.height, box.width)
    data = as_jpeg(image, quality=95)
    picture, plain = open_encoded(data, "a"), DecodedImage(decode_image(data, "a"))
    fast = picture.crop_resized(box, (64, 64)).float()
    there, beside = (plain.crop_resized(one, (64, 64)).float() for one in (box, moved))
    # A quarter of a pixel of the image that is decoded at an eighth can be told.
    assert (fast - there).abs().mean() < 0.6 * (fast - beside).abs().mean()


@pytest.mark.parametrize(
    ("side", "size", "scale"),
    [(191, 192, 1), (383, 192, 1), (384, 192, 2), (768, 192, 4), (1535, 192, 4), (4000, 192, 8)],
)
def test_no_crop_is_decoded_to_less_than_its_output(side: int, size: int, scale: int) -> None:
    assert find_scale(Box(0, 0, side, 5000), (size, size)) == scale
    assert find_scale(Box(0, 0, 5000, side), (size, size)) == scale


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (200, 900), (900, 200), (7, 5), (1, 1)])
@pytest.mark.parametrize("scale", [(0.67, 1.0), (0.08, 1.0)])
def test_crops_are_those_of_torchvision_for_the_same_random_state(
    shape: tuple[int, int], scale: tuple[float, float]
) -> None:
    ours = RandomCrop((32, 32), scale, RATIO)
    theirs = v2.RandomResizedCrop(32, scale=scale, ratio=RATIO)
    image = torch.empty(()).expand(3, *shape)
    for seed in range(100):
        torch.manual_seed(seed)
        box = ours.choose(*shape)
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        assert box._asdict() == theirs.make_params([image])
        assert torch.equal(torch.get_rng_state(), state)


def test_crops_have_the_distributions_that_they_should() -> None:
    torch.manual_seed(0)
    height, width = 30000, 40000  # so that places are fine enough to be uniform
    crop = RandomCrop((32, 32), SCALE, RATIO)
    whole = Box(0, 0, height, width)  # which is taken where ten draws did not fit
    boxes = [box for box in (crop.choose(height, width) for _ in range(3000)) if box != whole]
    assert len(boxes) > 2900
    ratios = np.array([math.log(box.width / box.height) for box in boxes])
    areas = np.array([box.width * box.height / (height * width) for box in boxes])
    tops = np.array([(box.top + 0.5) / (height - box.height + 1) for box in boxes])
    lefts = np.array([(box.left + 0.5) / (width - box.width + 1) for box in boxes])
    for places in (tops, lefts):  # uniform: Kolmogorov-Smirnov's distance, 1 in 1,000
        expected = (np.arange(len(places)) + 0.5) / len(places)
        assert np.abs(np.sort(places) - expected).max() < 1.95 / math.sqrt(len(places))
    # Of all (area, log ratio) in the rectangle, those that fit into the image.
    grid_area, grid_ratio = np.meshgrid(
        np.linspace(*SCALE, 400), np.linspace(*np.log(RATIO), 400), indexing="ij"
    )
    aspect = width / height
    fits = (grid_area * np.exp(grid_ratio) <= aspect) & (
        grid_area / np.exp(grid_ratio) <= 1 / aspect
    )
    for drawn, expected in ((areas, grid_area[fits]), (ratios, grid_ratio[fits])):
        quantiles = np.linspace(0.05, 0.95, 19)
        distance = np.quantile(drawn, quantiles) - np.quantile(expected, quantiles)
        assert np.abs(distance).max() < 0.03 * np.ptp(expected)


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    """Three photographs, which are decoded at full, half and a quarter of their size, and a PNG."""
    for number, (height, width) in enumerate([(60, 80), (100, 140), (250, 190)]):
        photograph(height, width).save(tmp_path / f"{number}.jpg", quality=90)
    photograph(50, 70).save(tmp_path / "3.png")
    return ImageFolder(tmp_path, ["0.jpg", "1.jpg", "2.jpg", "3.png"])


class Decoded:
    """The images of a folder, without a way to decode them later."""

    classes = ()

    def __init__(self, folder: ImageFolder) -> None:
        self.folder = folder
        self.load = folder.load
        self.identifier = folder.identifier
        self.present_classes = folder.present_classes

    def __len__(self) -> int:
        return len(self.folder)


@pytest.mark.parametrize(
    ("transform", "most"),
    [
        (light_augmentation(32), (0, 2, 2, 0)),
        (strong_augmentation(32, random_erasing=1.0), (0, 6, 6, 0)),  # which raises contrasts
        (CenterCrop(32), (0, 0, 0, 0)),  # held-out images are decoded in full
    ],
    ids=["light", "strong", "centre"],
)
def test_files_and_decoded_images_get_the_same_augmentation(
    folder: ImageFolder, transform: Any, most: tuple[float, ...]
) -> None:
    fast, plain = (TransformedImages(one, transform, 0) for one in (folder, Decoded(folder)))
    for epoch in range(3):
        for index, levels in enumerate(most):
            one, other = (images[SampleKey(epoch, index)].image for images in (fast, plain))
            assert (one.float() - other.float()).abs().mean() <= levels


def test_only_as_much_of_a_file_is_decoded_as_its_crop_needs(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "decode_image", None)  # which decodes all of it
    images = TransformedImages(folder, light_augmentation(32), 0)
    assert images[SampleKey(0, 2)].image.shape == (3, 32, 32)


def oriented(orientation: int) -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize(
    "data",
    [
        as_jpeg(photograph(60, 90), **oriented(6)),
        as_jpeg(photograph(60, 90), xmp=XMP),
        as_jpeg(photograph(60, 90), **oriented(6)).replace(b"\xff\xe0", b"\xff\xff\xe0", 1),
        as_jpeg(photograph(60, 90).convert("L")),
        as_jpeg(photograph(60, 90).convert("CMYK")),
    ],
    ids=["exif", "xmp", "exif after a fill byte", "grey", "cmyk"],
)
def test_other_jpegs_are_decoded_as_ever(data: bytes) -> None:
    picture = open_encoded(data, "a")
    whole = decode_image(data, "a")
    assert torch.equal(picture.decode(), whole)
    assert (picture.height, picture.width) == whole.shape[1:]
    box = Box(3, 5, 40, 33)
    torch.testing.assert_close(
        picture.crop_resized(box, (16, 16)), DecodedImage(whole).crop_resized(box, (16, 16))
    )


def test_a_picture_that_exif_says_is_upright_is_decoded_to_the_crop() -> None:
    assert isinstance(open_encoded(as_jpeg(photograph(60, 90), **oriented(1)), "a"), LazyJpeg)


def test_one_grey_channel_of_a_jpeg_is_as_ever() -> None:
    data = as_jpeg(photograph(60, 90))
    assert torch.equal(open_encoded(data, "a", 1).decode(), decode_image(data, "a", 1))


@pytest.mark.parametrize("kept", [0.3, 0.95])
def test_a_damaged_jpeg_is_named(tmp_path: Path, kept: float) -> None:
    data = as_jpeg(photograph(300, 400))
    path = tmp_path / "cut.jpg"
    path.write_bytes(data[: int(len(data) * kept)])
    for picture in (open_image(path), open_encoded(path.read_bytes(), str(path))):
        with pytest.raises(UserError, match=r"cannot read image .*cut\.jpg \(.*truncated"):
            picture.crop_resized(Box(0, 0, 300, 400), (32, 32))


def test_a_jpeg_that_pillow_still_reads_is_read(tmp_path: Path) -> None:
    data = bytearray(as_jpeg(photograph(64, 64)))
    middle = len(data) // 2
    data[middle : middle + 8] = bytes(8)  # a part of it is another picture now
    whole = DecodedImage(decode_image(bytes(data), "a"))
    box = Box(0, 0, 64, 64)
    fast = open_encoded(bytes(data), "a").crop_resized(box, (32, 32))
    assert torch.equal(fast, whole.crop_resized(box, (32, 32)))


def test_an_unreadable_header_is_named() -> None:
    with pytest.raises(UserError, match="cannot read image a "):
        open_encoded(b"\xff\xd8\xff" + bytes(100), "a")
