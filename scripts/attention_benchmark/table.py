"""What the benchmark prints: a table per shape, and the fastest tile."""

import statistics
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


def tabulate(cell: dict[str, Any]) -> Table:
    """The results of one shape, one row per implementation."""
    what = "shifted" if cell["shifted"] else "plain"
    table = Table(
        *(
            "implementation",
            "step, ms",
            "middle half",
            "over the first",
            "forward, ms",
            "peak, MiB",
            "error",
        ),
        title=f"{cell['type']}, window {cell['window']} ({what}), {cell['heads']} heads of "
        f"{cell['head_dim']}, {cell['windows']} windows",
    )
    first: list[float] | None = None
    for name, result in cell["results"].items():
        if "not_run" in result:
            table.add_row(name, "–", "", "", "", "", result["not_run"])
            continue
        times = result["step_ms"]
        first = first or times
        low, middle, high = statistics.quantiles(times * 2, n=4, method="inclusive")
        ratio = statistics.median(mine / its for mine, its in zip(times, first, strict=True))
        peak = result["peak_bytes"]
        table.add_row(
            name,
            f"{middle:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{ratio:.2f}×",
            f"{statistics.median(result['forward_ms']):.3f}",
            "" if peak is None else f"{peak / 2**20:.0f}",
            f"{result['error']:.0e}",
        )
    return table


def print_best_tile(console: Console, cell: dict[str, Any], dtype: torch.dtype) -> None:
    """Prints the line for TUNED_TILES, or that the default tile, the first result, is the fastest."""
    timed = {
        name: result["step_ms"]
        for name, result in cell["results"].items()
        if "not_run" not in result
    }
    if not timed:
        return
    best = min(timed, key=lambda name: statistics.median(timed[name]))
    key = cell["window"] ** 2, cell["head_dim"], dtype.itemsize
    if best == next(iter(timed)):
        console.print(f"{key}: the tile that was chosen, {best}, is the fastest")
    else:
        console.print(f"    {key}: Tile({best}),", highlight=False)
