"""Transforms: sizes, the ranges of random crops read off pictured coordinates, centre, errors."""

import math
import re
from typing import Any

import pytest
import simplejpeg
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms.v2.functional import pil_to_tensor

from simmim.data.dataset import seeded
from simmim.data.decoding.decode import open_encoded
from simmim.data.decoding.lazy_image import Box, DecodedImage
from simmim.data.decoding.on_device import Part, show
from simmim.data.decoding.resize import Interpolation
from simmim.data.transforms import CenterCrop, light_augmentation
from simmim.utils.errors import UserError


def coordinates(height: int, width: int) -> torch.Tensor:
    """An image whose first channel grows with the column, and whose second with the row."""
    image = torch.zeros(3, height, width)
    image[0] = torch.linspace(0, 255, width)
    image[1] = torch.linspace(0, 255, height)[:, None]
    return image.round().to(torch.uint8)


def extent(image: torch.Tensor, channel: int) -> float:
    """The share of the original that a crop covers along one axis, mirrored if negative."""
    line = image[channel].float().mean(dim=1 if channel == 1 else 0)
    # Away from the borders, where interpolation has no neighbours.
    inner = line[4:-4]
    slope = (inner[-1] - inner[0]) / (len(inner) - 1)
    return slope.item() * len(line) / 255


def crops(height: int, width: int, count: int = 150, **options: Any) -> list[tuple[float, float]]:
    """Height and width of random crops, as shares of the image's."""
    torch.manual_seed(0)
    transform = light_augmentation(64, **options)
    image = coordinates(height, width)
    return [(extent(crop, 1), extent(crop, 0)) for crop in (transform(image) for _ in range(count))]


@pytest.mark.parametrize("source", [(50, 30), (30, 50), (64, 64), (300, 20), (1, 1)])
@pytest.mark.parametrize("size", [32, (24, 40)])
def test_both_transforms_give_the_asked_size_still_uint8(
    source: tuple[int, int], size: int | tuple[int, int]
) -> None:
    image = torch.randint(0, 256, (3, *source), dtype=torch.uint8)
    for transform in (light_augmentation(size), CenterCrop(size)):
        output = transform(image)
        assert output.dtype == torch.uint8
        assert tuple(output.shape) == (3, *((size, size) if isinstance(size, int) else size))


def test_crops_cover_the_whole_range_of_scales_and_nothing_else() -> None:
    areas = [height * width for height, width in crops(256, 256, flip=0.0)]
    assert 0.64 < min(areas) < 0.72
    assert 0.95 < max(areas) < 1.03


def test_crops_cover_the_whole_range_of_ratios_and_nothing_else() -> None:
    options = {"scale": (0.3, 0.4), "ratio": (0.5, 2.0), "flip": 0.0}
    ratios = [math.log2(width / height) for height, width in crops(256, 256, **options)]
    assert -1.1 < min(ratios) < -0.8
    assert 0.8 < max(ratios) < 1.1
    assert abs(sum(ratios) / len(ratios)) < 0.25


def test_the_ratio_is_of_pixels_and_not_of_shares() -> None:
    options = {"scale": (0.2, 0.2), "ratio": (1.0, 1.0), "flip": 0.0}
    for height, width in crops(256, 384, count=10, **options):
        assert height * 256 == pytest.approx(width * 384, rel=0.06)


@pytest.mark.parametrize(("flip", "low", "high"), [(0.0, 0, 0), (1.0, 1, 1), (0.5, 0.35, 0.65)])
def test_images_are_mirrored_left_to_right_as_often_as_asked(
    flip: float, low: float, high: float
) -> None:
    drawn = crops(64, 64, flip=flip)
    assert low <= sum(width < 0 for _, width in drawn) / len(drawn) <= high
    assert all(height > 0 for height, _ in drawn)


def test_crops_lie_all_over_the_image() -> None:
    torch.manual_seed(0)
    transform = light_augmentation(16, scale=(0.1, 0.1), ratio=(1.0, 1.0), flip=0.0)
    centres = torch.stack(
        [transform(coordinates(64, 64)).float().mean(dim=(1, 2))[:2] for _ in range(150)]
    )
    # A crop a third of the side wide has its centre between 16% and 84%.
    assert (centres.amin(dim=0) < 0.25 * 255).all()
    assert (centres.amax(dim=0) > 0.75 * 255).all()


@pytest.mark.parametrize("source", [(48, 96), (96, 48), (40, 40)])
@pytest.mark.parametrize("size", [(16, 16), (16, 32), (32, 16)])
def test_the_center_crop_is_the_largest_of_the_target_s_shape_about_the_centre(
    source: tuple[int, int], size: tuple[int, int]
) -> None:
    output = CenterCrop(size)(coordinates(*source))
    scale = min(source[0] / size[0], source[1] / size[1])
    assert extent(output, 1) == pytest.approx(size[0] * scale / source[0], rel=0.08)
    assert extent(output, 0) == pytest.approx(size[1] * scale / source[1], rel=0.08)
    assert output[0].float().mean() == pytest.approx(127.5, abs=2.5)
    assert output[1].float().mean() == pytest.approx(127.5, abs=2.5)


def test_the_center_crop_of_an_image_of_the_target_s_size_is_the_image() -> None:
    image = torch.randint(0, 256, (3, 24, 40), dtype=torch.uint8)
    assert torch.equal(CenterCrop((24, 40))(image), image)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.8, 0.7), (0.5, 1.2), (-1.0, 0.5)])
def test_a_scale_that_is_no_share_of_the_image_is_refused(scale: tuple[float, float]) -> None:
    message = f"augmentation.scale {list(scale)} is not within (0, 1]; use [0.67, 1.0]"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        light_augmentation(32, scale=scale)


@pytest.mark.parametrize("ratio", [(0.0, 1.0), (2.0, 1.0)])
def test_a_ratio_that_is_no_range_is_refused(ratio: tuple[float, float]) -> None:
    message = f"augmentation.ratio {list(ratio)} is not a range; use [0.75, 1.3333]"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        light_augmentation(32, ratio=ratio)


@pytest.mark.parametrize("flip", [-0.1, 1.1])
def test_a_flip_that_is_no_probability_is_refused(flip: float) -> None:
    message = f"augmentation.flip {flip} is not a probability; use 0.5, or 0 for none"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        light_augmentation(32, flip=flip)


@pytest.mark.parametrize("transform", [light_augmentation, CenterCrop])
def test_a_size_that_is_none_is_refused(transform: Any) -> None:
    message = "model.image_size 0 is not a positive int or a (height, width); use 192 or [192, 256]"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        transform(0)


def test_ranges_may_be_lists_as_yaml_gives_them() -> None:
    transform = light_augmentation([32, 48], scale=[0.5, 1.0], ratio=[0.9, 1.1])
    assert transform(coordinates(60, 60)).shape == (3, 32, 48)


def photograph(height: int, width: int) -> Image.Image:
    """Shades with edges and grain, in colour."""
    generator = torch.Generator().manual_seed(height * width)
    coarse = torch.rand(1, 3, 6, 7, generator=generator)
    shades = torch.nn.functional.interpolate(coarse, (height, width), mode="nearest")[0]
    grain = torch.rand(3, height, width, generator=generator)
    pixels = (200 * shades + 55 * grain).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


# As in data/build.py of microsoft/Swin-Transformer: 256/224 of the size, or squashed.
def official(size: int, squash: bool) -> transforms.Compose:
    bicubic = transforms.InterpolationMode.BICUBIC
    if squash:
        return transforms.Compose([transforms.Resize((size, size), interpolation=bicubic)])
    resize = transforms.Resize(int((256 / 224) * size), interpolation=bicubic)
    return transforms.Compose([resize, transforms.CenterCrop(size)])


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("size", [192, 224, 256, 384])
@pytest.mark.parametrize("source", [(375, 500), (500, 333), (300, 300), (97, 101), (900, 211)])
def test_held_out_images_are_the_official_evaluation_s(
    source: tuple[int, int], size: int, squash: bool
) -> None:
    """But for rounding: Pillow 13 resizes tall images by the other of two passes first.

    In Pillow 11 no value is more than 2 off. A pixel's shift would change this grain by 18 on average.
    """
    image = photograph(*source)
    theirs = pil_to_tensor(official(size, squash)(image))
    crop = CenterCrop(size, squash=True) if squash else CenterCrop(size, 0.875)
    difference = (crop(pil_to_tensor(image)).int() - theirs.int()).abs()
    assert difference.max() <= 8
    assert difference.float().mean() < 0.3


def test_held_out_bands_are_shown_as_pictures_are() -> None:
    image = pil_to_tensor(photograph(120, 90))
    bands = torch.cat([image.float() * 40 - 300] * 4)
    crop = CenterCrop((48, 64), 0.8)
    output = (crop(bands)[:3] + 300) / 40
    assert (output - crop(image)).abs().max() < 1.6


@pytest.mark.parametrize("size", [(32, 32), (24, 48)])
@pytest.mark.parametrize("ratio", [1.0, 0.875, 0.5])
@pytest.mark.parametrize("source", [(200, 320), (320, 200)])
def test_the_crop_ratio_is_the_share_of_the_largest_crop_s_sides(
    source: tuple[int, int], ratio: float, size: tuple[int, int]
) -> None:
    output = CenterCrop(size, ratio)(coordinates(*source))
    largest = min(source[0] / size[0], source[1] / size[1])
    assert extent(output, 1) == pytest.approx(ratio * largest * size[0] / source[0], rel=0.08)
    assert extent(output, 0) == pytest.approx(ratio * largest * size[1] / source[1], rel=0.08)
    assert output[:2].float().mean(dim=(1, 2)).tolist() == pytest.approx([127.5] * 2, abs=5)


def test_a_squashed_image_is_whole() -> None:
    output = CenterCrop((32, 48), squash=True)(coordinates(90, 300))
    assert output.shape == (3, 32, 48)
    assert [extent(output, channel) for channel in (0, 1)] == pytest.approx([1, 1], rel=0.05)


@pytest.mark.parametrize("ratio", [0.0, -0.5, 0.05, 1.1, math.nan])
def test_a_crop_ratio_that_is_no_share_is_refused(ratio: float) -> None:
    message = f"data.crop_ratio {ratio} is not in [0.1, 1]; use 0.875, or 1 for the largest crop"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        CenterCrop(32, ratio)


def test_a_whole_image_has_no_middle() -> None:
    message = (
        "data.squash=true shows whole images and data.crop_ratio 0.875 their middle; "
        "leave one of them out"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        CenterCrop(32, 0.875, squash=True)
    assert CenterCrop(32, 1, squash=True).squash


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_crops_are_those_of_torchvision_on_pillow_s_images(interpolation: Interpolation) -> None:
    """`bilinear` is SimMIM's official pretraining, `bicubic` Swin's official training with labels."""
    image = photograph(211, 300)
    ours = light_augmentation(64, flip=0.0, interpolation=interpolation)
    theirs = transforms.RandomResizedCrop(
        64, scale=(0.67, 1.0), interpolation=transforms.InterpolationMode(interpolation)
    )
    for seed in range(4):
        with seeded(seed):
            expected = pil_to_tensor(theirs(image)).int()
        with seeded(seed):
            found = ours(pil_to_tensor(image)).int()
        assert (found - expected).abs().max() <= 2


@pytest.mark.parametrize("size", [(40, 40), (200, 200)], ids=["reduced", "in full"])
def test_every_way_to_a_crop_interpolates_as_asked(size: tuple[int, int]) -> None:
    """A JPEG file decoded to the crop, at a reduced scale too; tensors; bands; the device's."""
    pixels = coordinates(400, 440)
    pixels[2] = (torch.arange(440) % 24 < 12) * 255  # edges, which bicubic overshoots
    smooth = pixels.permute(1, 2, 0).contiguous().numpy()
    file = simplejpeg.encode_jpeg(smooth, quality=98, colorsubsampling="444")
    box = Box(20, 28, 360, 380)
    picture = open_encoded(file, "a.jpg")
    decoded = picture.decode()
    outputs = {}
    for interpolation in ("bicubic", "bilinear"):
        expected = DecodedImage(decoded.float()).crop_resized(box, size, interpolation)
        outputs[interpolation] = expected
        part = Part("a.jpg", len(file), 400 * 440, box, False)
        ways = {
            "tensor": DecodedImage(decoded).crop_resized(box, size, interpolation),
            "file": picture.crop_resized(box, size, interpolation),
            "device": show(part, decoded, size, interpolation),
        }
        for name, way in ways.items():
            difference = (way.float() - expected.clamp(0, 255)).abs()
            is_reduced = name == "file" and size == (40, 40)
            assert difference.max() < (40 if is_reduced else 2), name
            assert difference.mean() < (4 if is_reduced else 0.5), name
    assert (outputs["bicubic"] - outputs["bilinear"]).abs().max() > 5


@pytest.mark.unchecked
def test_an_unknown_interpolation_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"^augmentation\.interpolation nearest is unknown; use bicubic or bilinear$",
    ):
        light_augmentation(32, interpolation="nearest")
