"""Loading from JPEG files to augmented images on one core: ours and the official recipe."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from simmim.benchmark.timing import Ratio, interleave, ratio
from simmim.data.dataset import ImageSource, SampleKey, TransformedImages
from simmim.data.factories import imagefolder
from simmim.data.transforms import light_augmentation
from simmim.utils.normalization import IMAGENET_MEAN, IMAGENET_STD
from simmim.utils.sizes import Pair

# Width and height: a typical ImageNet photograph, and one straight from a camera.
SIZES: tuple[Pair, ...] = ((500, 375), (3000, 2000))


def draw_photographs(folder: Path, size: Pair, count: int) -> list[Path]:
    """Writes JPEG files of quality 90 that resemble photographs: smooth shades with fine grain."""
    folder.mkdir(parents=True)
    paths = []
    for number in range(count):
        generator = np.random.default_rng(number)
        coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        shades = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
        grain = generator.normal(0, 6, shades.shape)
        pixels = np.clip(shades + grain, 0, 255).astype(np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def official_recipe(image_size: int) -> Callable[[Path], Tensor]:
    """Loading as in the public SimMIM code: Pillow, torchvision's transforms, normalisation."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(image_size, scale=(0.67, 1.0), ratio=(3 / 4, 4 / 3)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)),
        ]
    )

    def load(path: Path) -> Tensor:
        with path.open("rb") as file, Image.open(file) as image:
            transformed: Tensor = transform(image.convert("RGB"))
        return transformed

    return load


def our_images(folder: Path, image_size: int) -> TransformedImages:
    """Images as loaded by the workers of a run, which normalises them later, on its device."""
    data = imagefolder(
        root=folder,
        image_size=image_size,
        batch_size=1,
        train_transform=light_augmentation(image_size),
        val_ratio=0.5,
        num_workers=0,
    )
    assert isinstance(data.train, ImageSource)
    assert data.train_transform is not None
    return TransformedImages(data.train, data.train_transform, data.seed)


def measure_loading(
    folder: Path, size: Pair, *, count: int, rounds: int, image_size: int = 192
) -> tuple[dict[str, float], Ratio]:
    """Images per second on one core by name, and the ratio of our rate to the official one."""
    paths = draw_photographs(folder, size, 2 * count)
    ours = our_images(folder, image_size)
    official = official_recipe(image_size)
    seconds_an_image = {
        "ours": _timer(lambda number, turn: ours[SampleKey(turn, number % len(ours))], count),
        "official recipe": _timer(lambda number, _: official(paths[number]), count),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = interleave(seconds_an_image, rounds)
    finally:
        torch.set_num_threads(threads)
    rates = {name: 1 / statistics.median(values) for name, values in seconds.items()}
    return rates, ratio(seconds["official recipe"], seconds["ours"])


def _timer(load: Callable[[int, int], object], count: int) -> Callable[[], float]:
    turn = 0

    def timed() -> float:
        nonlocal turn
        turn += 1
        started = time.perf_counter()
        for number in range(count):
            load(number, turn)
        return (time.perf_counter() - started) / count

    return timed
