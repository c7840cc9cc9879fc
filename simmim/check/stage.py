"""The check stage: reads all images before a run, and lists those that cannot be read."""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from jaxtyping import Int
from omegaconf import DictConfig
from rich import get_console
from rich.progress import track
from rich.table import Table

from simmim.check.inspection import FileSource, Finding, inspect
from simmim.data import ImageDataModule
from simmim.data.host_resources import available_cores
from simmim.data.sources.shards import ShardImages
from simmim.data.sources.streams import ImageStream
from simmim.data.transforms import CenterCrop
from simmim.utils.console import say
from simmim.utils.errors import UserError
from simmim.utils.files import as_json

# The datamodule requires an image size; reading the images does not depend on it.
_ANY_SIZE = 32


def check(*, data: DictConfig, processes: int | None, run_dir: str) -> dict[str, Any]:
    """Writes `bad.jsonl`, `duplicates.jsonl` and `check.json`; returns the content of `check.json`.

    Raises:
        SystemExit: with code 1, if images cannot be read or shards are damaged.
    """
    started = time.monotonic()
    if processes is not None and processes < 1:
        raise UserError(f"processes {processes} is not positive; use null for one on each core")
    transform = CenterCrop(_ANY_SIZE)
    images: ImageDataModule = instantiate(
        data, image_size=_ANY_SIZE, train_transform=transform, seed=0
    )
    sources = find_sources(images)
    total = sum(map(len, sources))
    workers = processes or available_cores()
    found = (
        finding for source in sources for finding in inspect(source, images.tolerance, workers)
    )
    tally = Tally(total)
    with Path(run_dir, "bad.jsonl").open("w") as bad:
        for finding in track(found, "images", total, console=get_console(), disable=_is_silent()):
            tally.add(finding)
            if finding.reason:
                bad.write(json.dumps({"image": finding.name, "reason": finding.reason}) + "\n")
    repeated = write_duplicates(tally, Path(run_dir, "duplicates.jsonl"))
    damaged = {
        path: reason
        for source in sources
        if isinstance(source, ShardImages)
        for path, reason in source.damaged.items()
    }
    figures = tally.figures() | {
        "duplicates": repeated,
        "damaged_shards": damaged,
        "seconds": time.monotonic() - started,
    }
    Path(run_dir, "check.json").write_text(as_json(figures) + "\n")
    show(figures)
    say(f"written to {run_dir}")
    if figures["unreadable"] or damaged:
        if figures["unreadable"]:
            say(f"a run leaves them out by data.exclude={run_dir}/bad.jsonl")
        raise SystemExit(1)
    return figures


def find_sources(images: ImageDataModule) -> list[FileSource]:
    """The training and held-out images of a run; UserError if they are not stored as files."""
    if isinstance(images.train, ImageStream):
        raise UserError("streamed images cannot be checked; check them where they are stored")
    if not isinstance(images.train, FileSource) or not isinstance(images.val, FileSource):
        raise UserError("there is no file to check; use data=imagefolder, webdataset or hf")
    return [images.train, images.val]


class Tally:
    """Collects findings: counts, and the size and digest of each of at most `most` images."""

    def __init__(self, most: int) -> None:
        self.names: list[str] = []
        self.reasons: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self.value_types: Counter[str] = Counter()
        self.misnamed = 0
        self._numbers = np.zeros((most, 3), np.int64)

    def add(self, finding: Finding) -> None:
        """Adds the finding of one image."""
        self._numbers[len(self.names)] = finding.height, finding.width, finding.digest
        self.names.append(finding.name)
        self.formats[finding.format or "unknown"] += 1
        self.misnamed += finding.is_misnamed
        if finding.reason:
            # Reasons that differ only in numbers are counted together.
            self.reasons[re.sub(r"\d+", "N", finding.reason)] += 1
        else:
            self.value_types[finding.value_type] += 1

    def figures(self) -> dict[str, Any]:
        """The statistics of `check.json`, except for duplicates."""
        sizes = self._numbers[: len(self.names), :2]
        sizes = sizes[sizes[:, 0] > 0]
        return {
            "images": len(self.names),
            "unreadable": self.reasons.total(),
            "reasons": dict(self.reasons.most_common()),
            "formats": dict(self.formats.most_common()),
            "named_as_another_format": self.misnamed,
            "value_types": dict(self.value_types.most_common()),
            "height": _spread(sizes[:, 0]),
            "width": _spread(sizes[:, 1]),
            "pixels": _spread(sizes.prod(1)),
        }

    def duplicates(self) -> Iterator[tuple[str, str]]:
        """Images with the same content as an earlier one, each with the first image of that content."""
        digests = self._numbers[: len(self.names), 2]
        _, firsts, inverse = np.unique(digests, return_index=True, return_inverse=True)
        readable = self._numbers[: len(self.names), 0] > 0
        for place in np.flatnonzero((firsts[inverse] != np.arange(len(digests))) & readable):
            yield self.names[place], self.names[firsts[inverse[place]]]


def write_duplicates(tally: Tally, path: Path) -> int:
    """Writes a line for each duplicate; returns the number of duplicates."""
    count = 0
    with path.open("w") as file:
        for name, first in tally.duplicates():
            file.write(json.dumps({"image": name, "same_as": first}) + "\n")
            count += 1
    return count


def show(figures: Mapping[str, Any]) -> None:
    """Prints the statistics as a table on the console."""
    table = Table(min_width=60, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("images", f"{figures['images']:,}")
    table.add_row("cannot be read", f"{figures['unreadable']:,}")
    for reason, count in figures["reasons"].items():
        table.add_row(f"  {reason}", f"{count:,}")
    for path, reason in figures["damaged_shards"].items():
        table.add_row(f"damaged: {path}", reason)
    table.add_section()
    table.add_row("formats", _list(figures["formats"]))
    table.add_row("named as another format", f"{figures['named_as_another_format']:,}")
    table.add_row("values", _list(figures["value_types"]))
    table.add_row("same content as one before", f"{figures['duplicates']:,}")
    table.add_section()
    for name in ("height", "width", "pixels"):
        if spread := figures[name]:
            what = f"{spread['min']:,} … {spread['median']:,} … {spread['max']:,}"
            table.add_row(f"{name}: least, median, most", what)
    get_console().print(table)


def _spread(values: Int[np.ndarray, " n"]) -> dict[str, int] | None:
    if not len(values):
        return None
    return {
        "min": int(values.min()),
        "median": int(np.median(values)),
        "max": int(values.max()),
    }


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _is_silent() -> bool:
    """Whether the console is not a terminal, so that no progress bar is shown."""
    return not get_console().is_terminal
