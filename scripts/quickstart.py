"""The whole story on a CPU: pretrain, fine-tune (and from scratch beside it), transfer; one table.

    python scripts/quickstart.py                  one seed, as in the README's table
    python scripts/quickstart.py --seeds 0 1 2    all of it once a seed, with means

Each step is the command that a user would type, and is printed before it runs.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

from commands import run
from rich.console import Console
from rich.table import Table

# The size that the classifier is carried to: 1.5 times that of pretraining, as is the window.
LARGER = ("model.image_size=96", "model.window_size=12")


class Story(NamedTuple):
    """The summaries of one seed's runs."""

    pretrained: dict[str, Any]
    finetuned: dict[str, Any]
    scratch: dict[str, Any]
    transferred: dict[str, Any]


class Row(NamedTuple):
    """One line of the table: a figure for each seed."""

    name: str
    values: list[float]
    seconds: list[float]


def main() -> None:
    """Runs the story for each seed and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, help="folder to write to")
    arguments = parser.parse_args()
    out: Path = arguments.out or Path("outputs", "quickstart", time.strftime("%Y-%m-%d_%H-%M-%S"))
    started = time.monotonic()
    stories = [tell(out / f"seed{seed}", seed) for seed in arguments.seeds]
    rows = table_rows(stories)
    labels = stories[0].finetuned["training_images"]
    title = f"Drawn textures, 12 classes, {labels} labels, {len(stories)} seed(s)"
    markdown = as_markdown(rows, arguments.seeds)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(f"{title}\n\n{markdown}")
    show(rows, arguments.seeds, title)
    Console().print(f"all in {time.monotonic() - started:.0f} s; runs and table.md in {out}")


def tell(folder: Path, seed: int) -> Story:
    """The three stages of one seed, and fine-tuning from scratch."""
    seeded = f"seed={seed}"
    start = f"init.checkpoint={folder / 'pretrain'}"
    classifier = f"init.checkpoint={folder / 'finetune'}"
    return Story(
        pretrained=run("pretrain", folder / "pretrain", seeded),
        finetuned=run("finetune", folder / "finetune", start, seeded),
        scratch=run("finetune", folder / "scratch", seeded),
        transferred=run("transfer", folder / "transfer", classifier, *LARGER, seeded),
    )


def table_rows(stories: list[Story]) -> list[Row]:
    """Top-1 of what was trained, in the order of the story."""

    def row(name: str, part: str, figure: str) -> Row:
        summaries = [getattr(story, part) for story in stories]
        values = [summary["metrics"][figure] for summary in summaries]
        return Row(name, values, [summary["seconds"] for summary in summaries])

    return [
        row("from scratch, 64 px", "scratch", "val/top1"),
        row("from the pretrained encoder, 64 px", "finetuned", "val/top1"),
        row("→ carried to 96 px, direct", "transferred", "direct/top1"),
        row("→ carried to 96 px, fine-tuned", "transferred", "val/top1"),
    ]


def as_cells(row: Row) -> list[str]:
    """The row as text: mean of the seeds where there are several, then each."""
    each = [f"{value:.1%}" for value in row.values]
    return [row.name, *([f"{statistics.mean(row.values):.1%}"] if len(each) > 1 else []), *each]


def headings(seeds: list[int]) -> list[str]:
    """The columns' names."""
    each = [f"seed {seed}" for seed in seeds] if len(seeds) > 1 else ["top-1"]
    return ["", *(["mean top-1"] if len(seeds) > 1 else []), *each]


def as_markdown(rows: list[Row], seeds: list[int]) -> str:
    """The table for a README."""
    lines = [headings(seeds), ["---"] * len(headings(seeds)), *map(as_cells, rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def show(rows: list[Row], seeds: list[int], title: str) -> None:
    """Prints the table."""
    table = Table(title=title)
    for heading in headings(seeds):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in rows:
        table.add_row(*as_cells(row))
    Console().print(table)


if __name__ == "__main__":
    main()
