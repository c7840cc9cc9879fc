"""A folder of images into tar shards for data=webdataset, in parallel.

    python scripts/make_shards.py DIR OUT
    python scripts/make_shards.py DIR OUT --shard-size 5000 --max-side 512

Files are copied byte by byte, in an order shuffled by --seed; the first folder below DIR is the label
where most images lie in one, and the others are left out. OUT gets shard-000000.tar, … and
dataset.json, which names the classes and counts the images.
"""

import argparse
import json
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from jaxtyping import Real
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from simmim.data.decoding.decode import decode_image
from simmim.data.sources.image_folder import find_classes, find_images, find_split_folders
from simmim.data.sources.shard_urls import DESCRIPTION, require_webdataset
from simmim.utils.errors import UserError

_SHOWN = 10


class Recipe(NamedTuple):
    """How every shard is made: from which folder and classes, and what becomes of a file."""

    root: Path
    out: Path
    classes: tuple[str, ...]
    channels: int
    max_side: int | None


class Entry(NamedTuple):
    """A file that goes into a shard: its place in the order of all, and its path below the root."""

    number: int
    path: str


class Made(NamedTuple):
    """A finished shard, and the files that are not in it because they cannot be read."""

    name: str
    images: int
    errors: list[str]


def main() -> None:
    """Deals the files out to shards and writes these in parallel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="a folder of images, nested as it likes")
    parser.add_argument("out", type=Path, help="an empty or new folder")
    parser.add_argument("--shard-size", type=int, default=1000, help="images in a shard")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--channels", type=int, default=3, help="3: pictures in RGB (default)")
    parser.add_argument(
        "--max-side", type=int, help="larger pictures are scaled down and encoded again"
    )
    arguments = parser.parse_args()
    try:
        made = make_shards(
            arguments.root,
            arguments.out,
            shard_size=arguments.shard_size,
            seed=arguments.seed,
            workers=arguments.workers,
            channels=arguments.channels,
            max_side=arguments.max_side,
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    errors = [reason for shard in made for reason in shard.errors]
    for reason in errors[:_SHOWN]:
        Console(stderr=True, soft_wrap=True).print(f"left out: {reason}")
    count = sum(shard.images for shard in made)
    Console(soft_wrap=True, highlight=False).print(
        f"{count} images in {len(made)} shards, {len(errors)} left out; data=webdataset "
        f"data.root={arguments.out}"
    )


def make_shards(
    root: Path,
    out: Path,
    *,
    shard_size: int = 1000,
    seed: int = 0,
    workers: int | None = None,
    channels: int = 3,
    max_side: int | None = None,
) -> list[Made]:
    """Writes the shards and, at the end, dataset.json; the same arguments give the same bytes.

    Raises:
        UserError: a folder without images, one to write to that is not empty, or a size of nothing.
    """
    require_webdataset()
    if shard_size < 1 or (max_side is not None and max_side < 1):
        raise UserError(f"--shard-size {shard_size} and --max-side {max_side} must be positive")
    if max_side is not None and channels != 3:
        raise UserError(
            f"--max-side is for RGB pictures and --channels is {channels}; leave it out"
        )
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give a folder of images")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; give another folder, or empty it")
    parts = find_split_folders(root)
    if parts is not None and parts.held_out is not None:
        train, held_out = parts.train.name, parts.held_out.name
        raise UserError(
            f"{parts.train.parent} has the parts {train} and {held_out}; make shards of each, "
            f"{parts.train} into {out}/{train} and {parts.held_out} into {out}/{held_out}: then "
            f"data.root={out} trains on the one and holds out the other"
        )
    paths = sorted(find_images(root))
    if not paths:
        raise UserError(f"{root} holds no image; give a folder of images")
    classes = find_classes(paths)
    strays = [f"{root}/{path} lies beside the class folders" for path in paths if "/" not in path]
    if classes:
        paths = [path for path in paths if "/" in path]
    random.Random(seed).shuffle(paths)
    entries = [Entry(number, path) for number, path in enumerate(paths)]
    shards = [entries[first : first + shard_size] for first in range(0, len(paths), shard_size)]
    out.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(root, out, classes, channels, max_side)
    with ProcessPoolExecutor(workers) as processes:
        written = processes.map(partial(write_shard, recipe), range(len(shards)), shards)
        made = list(track(written, "writing shards", total=len(shards)))
    description = {
        "samples": sum(shard.images for shard in made),
        "classes": classes,
        "shards": {shard.name: shard.images for shard in made},
    }
    (out / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
    if classes and strays:
        made[-1].errors.extend(strays)
    return made


def write_shard(recipe: Recipe, number: int, entries: list[Entry]) -> Made:
    """Writes one shard; files that cannot be read as images are left out."""
    name = f"shard-{number:06d}.tar"
    count, errors = 0, []
    # The time of every file is the same, so that shards do not depend on when they were made.
    options = {"encoder": False, "mtime": 0.0, "format": "PAX_FORMAT"}
    with (
        (recipe.out / name).open("wb") as file,
        require_webdataset().TarWriter(file, **options) as tar,
    ):
        for entry in entries:
            path = PurePosixPath(entry.path)
            try:
                content = (recipe.root / path).read_bytes()
                image = decode_image(content, entry.path, recipe.channels)
            except (OSError, UserError) as error:
                errors.append(str(error))
                continue
            suffix = path.suffix.lower()
            if recipe.max_side is not None:
                content, suffix = shrink(content, image, suffix, recipe.max_side)
            # A key has no dot, for the first one ends it, and no folder, which would be a label.
            stem = path.with_suffix("").as_posix().replace(".", "_").replace("/", "-")
            sample = {"__key__": f"{entry.number:09d}-{stem}", suffix[1:]: content}
            if recipe.classes:
                sample["cls"] = str(recipe.classes.index(path.parts[0])).encode()
            tar.write(sample)
            count += 1
    return Made(name, count, errors)


def shrink(
    content: bytes, image: Real[Tensor, "3 h w"], suffix: str, max_side: int
) -> tuple[bytes, str]:
    """A picture with no side longer than `max_side`, as JPEG where it was one and else as PNG.

    Arrays and measured values stay as they are, and so does what is small enough.
    """
    is_picture = image.dtype == torch.uint8 and suffix != ".npy"
    if not is_picture or max(image.shape[1:]) <= max_side:
        return content, suffix
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    encoded = BytesIO()
    is_jpeg = suffix in (".jpg", ".jpeg")
    picture.save(encoded, "JPEG" if is_jpeg else "PNG", **({"quality": 95} if is_jpeg else {}))
    return encoded.getvalue(), ".jpg" if is_jpeg else ".png"


if __name__ == "__main__":
    main()
