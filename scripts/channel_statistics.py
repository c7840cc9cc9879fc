"""Mean and standard deviation of each channel, over a folder of images or tar shards.

    python scripts/channel_statistics.py DIR                            RGB pictures, in [0, 1]
    python scripts/channel_statistics.py DIR --channels 14 --out FILE   then data.statistics=FILE
    python scripts/channel_statistics.py 'DIR/*.tar'                    shards

Every value counts that is finite. Prints the lines for a configuration.
"""

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import reduce
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from simmim.data.channel_stats import ChannelStatistics, PartStatistics, part_statistics
from simmim.data.dataset import ImageSource
from simmim.data.sources.image_folder import open_folder
from simmim.data.sources.shard_urls import find_shards
from simmim.data.sources.shards import ShardImages, Shards, index_shards
from simmim.utils.errors import UserError

# Images that a process takes at a time.
_CHUNK = 64
_SHOWN = 10

_source: ImageSource


def main() -> None:
    """Reads all images once, in parallel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", help="a folder of images or shards, a glob or brace list of shards")
    parser.add_argument("--channels", type=int, default=3, help="3: pictures in RGB (default)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--out", type=Path, help="a JSON file for data.statistics")
    arguments = parser.parse_args()
    try:
        source = open_source(arguments.root, arguments.channels)
        statistics, errors = measure(source, arguments.workers)
    except UserError as error:
        sys.exit(f"error: {error}")
    console = Console(soft_wrap=True, highlight=False)
    for reason in errors[:_SHOWN]:
        Console(stderr=True, soft_wrap=True).print(f"left out: {reason}")
    console.print(f"{len(source) - len(errors)} images, {len(errors)} could not be read")
    mean, std = (list(map(float, values)) for values in (statistics.mean, statistics.std))
    for name, values in (("mean", mean), ("std", std)):
        console.print(f"{name}: [{', '.join(f'{value:.6g}' for value in values)}]")
    if arguments.out is not None:
        content = {"mean": mean, "std": std, "images": len(source) - len(errors)}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")
        console.print(f"data.statistics={arguments.out}")


def open_source(root: str, channels: int) -> ImageSource:
    """A folder of images, or shards."""
    folder = Path(root).expanduser()
    if folder.is_dir() and not any(folder.glob("*.tar")):
        return open_folder(folder, channels)
    paths = [Path(path) for path in find_shards(root)]
    return ShardImages(Shards(paths, index_shards(paths, "skip"), ()), channels=channels)


def measure(source: ImageSource, workers: int) -> tuple[ChannelStatistics, list[str]]:
    """Statistics over all images, and the images that could not be read.

    Raises:
        UserError: not one can be read, or their values have no common unit.
    """
    chunks = [
        range(first, min(first + _CHUNK, len(source))) for first in range(0, len(source), _CHUNK)
    ]
    with ProcessPoolExecutor(workers, initializer=_start, initargs=(source,)) as processes:
        parts = list(
            track(processes.map(_measure_chunk, chunks), "reading images", total=len(chunks))
        )
    errors = [error for part in parts for error in part.errors]
    measured = [part.statistics for part in parts if part.statistics is not None]
    if not measured:
        raise UserError(f"not one image can be read: {errors[0]}")
    return reduce(ChannelStatistics.merge, measured), errors


def _start(source: ImageSource) -> None:
    global _source  # noqa: PLW0603
    torch.set_num_threads(1)
    _source = source


def _measure_chunk(chunk: range) -> PartStatistics:
    return part_statistics(_source, chunk)


if __name__ == "__main__":
    main()
