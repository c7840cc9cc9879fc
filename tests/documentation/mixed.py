"""Images as people have them: photographs and drawings of many sizes, formats, modes and rotations."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import matplotlib
import numpy as np
import sklearn.datasets
from PIL import Image, ImageDraw, ImageOps

# Height and width: ordinary ones, a panorama, tiny ones, a photograph of a camera.
SIZES = [(240, 320), (320, 240), (200, 200), (375, 500), (90, 640), (256, 192), (33, 47), (8, 11)]
LARGE = (1600, 2400)
ORIENTATION = 0x0112


def mixed_images(folder: Path, number: int, seed: int = 0) -> None:
    """Writes so many images below `folder`; each size comes in each format, in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    photographs = [photograph.convert("RGB") for photograph in open_photographs()]
    for place in range(number):
        size = LARGE if place == number // 2 else SIZES[place % len(SIZES)]
        kind = (place // len(SIZES) + place) % len(WRITERS)
        if place % 3 == 2:
            image = drawing(random, size)
        else:
            image = crop(random, photographs[place % len(photographs)], size)
        WRITERS[kind](image, folder / f"{place:03}")


def open_photographs() -> list[Image.Image]:
    """Those that packages of the tests bring."""
    samples = Path(matplotlib.get_data_path()) / "sample_data"
    own = Path(sklearn.datasets.__file__).parent / "images"
    return [
        Image.open(path)
        for path in (own / "china.jpg", own / "flower.jpg", samples / "grace_hopper.jpg")
    ]


def crop(
    random: np.random.Generator, photograph: Image.Image, size: tuple[int, int]
) -> Image.Image:
    height, width = size
    if height > photograph.height or width > photograph.width:
        return ImageOps.fit(photograph, (width, height))
    top = int(random.integers(photograph.height - height + 1))
    left = int(random.integers(photograph.width - width + 1))
    return photograph.crop((left, top, left + width, top + height))


def drawing(random: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Flat shapes, whose few colours and even areas photographs do not have."""
    height, width = size
    image = Image.new("RGB", (width, height), tuple(random.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        box = np.sort(random.integers(0, (height, width), (2, 2)), axis=0)[:, ::-1]
        pen.ellipse(box.ravel().tolist(), tuple(random.integers(0, 256, 3).tolist()))
    return image


def rotated(orientation: int) -> Callable[[Image.Image, Path], None]:
    def write(image: Image.Image, path: Path) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        image.save(path.with_suffix(".jpg"), exif=exif)

    return write


def with_alpha(image: Image.Image) -> Image.Image:
    ramp = np.linspace(0, 255, image.width, dtype=np.uint8)
    image.putalpha(Image.fromarray(np.tile(ramp, (image.height, 1))))
    return image


def in_16_bits(image: Image.Image, path: Path) -> None:
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(path)


WRITERS: list[Callable[[Image.Image, Path], object]] = [
    lambda image, path: image.save(path.with_suffix(".jpg")),
    lambda image, path: image.save(path.with_suffix(".JPEG"), progressive=True, quality=60),
    lambda image, path: image.convert("L").save(path.with_suffix(".jpg")),
    lambda image, path: image.convert("CMYK").save(path.with_suffix(".jpg")),
    rotated(3),
    rotated(6),
    rotated(8),
    lambda image, path: image.save(path.with_suffix(".png")),
    lambda image, path: image.convert("L").save(path.with_suffix(".png")),
    lambda image, path: image.convert("1").save(path.with_suffix(".png")),
    lambda image, path: image.convert("P").save(path.with_suffix(".png"), transparency=0),
    lambda image, path: with_alpha(image).save(path.with_suffix(".png")),
    lambda image, path: with_alpha(image).convert("LA").save(path.with_suffix(".png")),
    lambda image, path: in_16_bits(image, path.with_suffix(".png")),
    lambda image, path: image.save(path.with_suffix(".webp")),
    lambda image, path: with_alpha(image).save(path.with_suffix(".webp"), lossless=True),
    lambda image, path: image.save(path.with_suffix(".tif")),
    lambda image, path: image.save(path.with_suffix(".tiff"), compression="tiff_lzw"),
    lambda image, path: image.save(path.with_suffix(".gif")),
    lambda image, path: image.save(path.with_suffix(".bmp")),
]


def labelled_images(folder: Path, train: int, val: int) -> None:
    """Folders `train` and `val` with three classes each."""
    seeds = count()
    for split, number in (("train", train), ("val", val)):
        for label in ("ants", "bees", "wasps"):
            mixed_images(folder / split / label, number // 3, next(seeds))
