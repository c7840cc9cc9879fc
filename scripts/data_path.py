"""How many images a core reads, decodes and augments in a second: ours beside others' ways.

    python scripts/data_path.py                     pictures that simmim draws, 500×375 and 3000×2000
    python scripts/data_path.py DIR DIR2 --out FILE folders of JPEG files

SimMIM's official transform, torchvision's JPEG decoder with its v2 transforms, and ours make batches of
the same files in turn, on one thread. Seconds are of processor time, so that what else a machine does
matters less; ratios are of batches that were made one right after the other.
"""

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import default_collate
from torchvision import transforms as v1
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

from simmim.data.dataset import SampleKey, TransformedImages
from simmim.data.sources.image_folder import ImageFolder, find_images
from simmim.data.synthetic.dataset import render
from simmim.data.transforms import light_augmentation
from simmim.utils.errors import UserError
from simmim.utils.normalization import IMAGENET_MEAN, IMAGENET_STD

SCALE, RATIO = (0.67, 1.0), (3 / 4, 4 / 3)
DRAWN = {"500×375": (375, 500, 24), "3000×2000": (2000, 3000, 6)}

# A sample of an epoch by its index.
Make = Callable[[int, int], Any]


class Measured(NamedTuple):
    """One way on one folder: images a second, and how many times the official transform's."""

    images_per_second: float
    ratio: float
    lowest: float
    highest: float


def main() -> None:
    """Measures every folder and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="of JPEG files; none: drawn pictures")
    parser.add_argument("--image-size", type=int, default=192, help="pixels (default: 192)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10, help="times that each image is read")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = {}
    try:
        with folders_of(arguments.folders) as folders:
            for name, folder in folders.items():
                figures[name] = measure(
                    folder, arguments.image_size, arguments.batch_size, arguments.rounds
                )
    except UserError as error:
        sys.exit(f"error: {error}")
    machine = find_processor()
    show(figures, machine)
    if arguments.out is not None:
        content = {"machine": machine, "image_size": arguments.image_size, "folders": figures}
        arguments.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def folders_of(given: list[Path]) -> Iterator[dict[str, Path]]:
    """The folders by name; of drawn pictures, for as long as they are needed, where none is given."""
    if given:
        yield {str(folder): folder for folder in given}
        return
    with TemporaryDirectory() as temporary:
        for name, (height, width, count) in DRAWN.items():
            folder = Path(temporary, name)
            folder.mkdir()
            for index in range(count):
                pixels, _ = render(0, "train", index, (height, width), detail=height / 192)
                path = folder / f"{index}.jpg"
                Image.fromarray(pixels).save(path, quality=90, subsampling="4:2:0")
        yield {f"drawn, {name}": Path(temporary, name) for name in DRAWN}


def measure(folder: Path, image_size: int, batch_size: int, rounds: int) -> dict[str, Any]:
    """All ways on one folder, batch by batch in turn."""
    names = sorted(name for name in find_images(folder) if name.endswith((".jpg", ".jpeg")))
    if not names:
        raise UserError(f"{folder} holds no JPEG file; name another folder")
    transform, source = light_augmentation(image_size), ImageFolder(folder, names)
    images, decoded = (
        TransformedImages(one, transform, seed=0) for one in (source, DecodedFirst(source))
    )
    ways: dict[str, Make] = {
        "official": official([folder / name for name in names], image_size),
        "torchvision": by_torchvision([folder / name for name in names], image_size),
        "ours": lambda epoch, index: images[SampleKey(epoch, index)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for epoch in range(rounds + 1):  # the first is to warm up
        for first in range(0, len(names), batch_size):
            batch = range(first, min(first + batch_size, len(names)))
            for name, make in ways.items():
                started = time.thread_time()
                default_collate([make(epoch, index) for index in batch])
                if epoch:
                    seconds[name].append((time.thread_time() - started) / len(batch))
    return {
        "files": len(names),
        "kilobytes": sum((folder / name).stat().st_size for name in names) / len(names) / 1000,
        "difference": difference(images, decoded, len(names)),
        "ways": {name: compare(seconds["official"], values) for name, values in seconds.items()},
    }


def official(paths: list[Path], image_size: int) -> Make:
    """The official code's transform: Pillow, floats that are normalised on the processor."""
    transform = v1.Compose(
        [
            v1.RandomResizedCrop(image_size, scale=SCALE, ratio=RATIO),
            v1.RandomHorizontalFlip(),
            v1.ToTensor(),
            v1.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )

    def make(_: int, index: int) -> Tensor:
        with paths[index].open("rb") as file:
            return transform(Image.open(file).convert("RGB"))

    return make


def by_torchvision(paths: list[Path], image_size: int) -> Make:
    """What torchvision does best: its own decoder, and uint8 until the batch is on the device."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(image_size, scale=SCALE, ratio=RATIO, antialias=True),
            v2.RandomHorizontalFlip(),
        ]
    )
    return lambda _, index: transform(
        decode_jpeg(read_file(str(paths[index])), mode=ImageReadMode.RGB)
    )


class DecodedFirst:
    """A folder's images, all of each decoded before it is cropped."""

    def __init__(self, folder: ImageFolder) -> None:
        self.load = folder.load
        self.identifier = folder.identifier
        self.present_classes = folder.present_classes
        self.classes = folder.classes
        self.length = len(folder)

    def __len__(self) -> int:
        """Number of images."""
        return self.length


def difference(images: TransformedImages, decoded: TransformedImages, count: int) -> float:
    """Mean absolute difference of samples to those of decoded files, in 8-bit levels."""
    pairs = (
        (images[key].image, decoded[key].image)
        for key in (SampleKey(1, index) for index in range(count))
    )
    return float(np.mean([(one.float() - other).abs().mean().item() for one, other in pairs]))


def compare(official: list[float], seconds: list[float]) -> Measured:
    """Medians over the batches, and the middle 80% of their ratios."""
    ratios = np.array(official) / np.array(seconds)
    lowest, ratio, highest = np.quantile(ratios, (0.1, 0.5, 0.9))
    return Measured(*map(float, (1 / np.median(seconds), ratio, lowest, highest)))


def find_processor() -> str:
    """The name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def show(figures: dict[str, dict[str, Any]], machine: str) -> None:
    """A table with a line for each folder and way."""
    table = Table(title=f"one core of {machine}", title_justify="left")
    for column in ("files", "way", "images/s", "of the official", "middle 80%", "difference"):
        table.add_column(column, justify="left" if column in ("files", "way") else "right")
    for folder, found in figures.items():
        title = f"{folder} ({found['kilobytes']:.0f} kB)"
        for way, (rate, ratio, lowest, highest) in found["ways"].items():
            is_ours = way == "ours"
            table.add_row(
                title if way == "official" else "",
                way,
                f"{rate:.0f}",
                f"{ratio:.2f}×",
                f"{lowest:.2f} to {highest:.2f}",
                f"{found['difference']:.2f} of 255" if is_ours else "",
            )
        table.add_section()
    Console(soft_wrap=True, highlight=False).print(table)


if __name__ == "__main__":
    main()
