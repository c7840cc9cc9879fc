"""The results as tables on the console, and as a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import get_console
from rich.table import Table

from simmim.benchmark.scaling import Growth


def show_steps(steps: Sequence[dict[str, Any]]) -> None:
    """Prints step times, one line per workload and peer; with a ratio below 1, ours is faster."""
    table = _table("seconds of a step, and ours over theirs (lowest and highest of the rounds)")
    _add_columns(table, "step", "peer", "theirs", "ours", "ratio", "spread")
    for row in steps:
        ours = f"{row['seconds']['ours']:.3g}"
        lines = [
            (
                peer,
                f"{row['seconds'][peer]:.3g}",
                ours,
                f"{ratio['median']:.2f}",
                f"{ratio['lowest']:.2f} – {ratio['highest']:.2f}",
            )
            for peer, ratio in row["ratios"].items()
        ]
        _add_lines(table, row, lines)
    get_console().print(table)


def show_memory(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the peak memory of a step of each implementation."""
    table = _table("peak memory of a step beyond the bare process")
    _add_columns(table, "step", "who", "MB", "ours over theirs")
    for row in rows:
        ours = row["bytes"]["ours"]
        lines = [
            (name, f"{size / 1e6:.0f}", "" if name == "ours" else f"{ours / size:.2f}")
            for name, size in row["bytes"].items()
        ]
        _add_lines(table, row, lines)
    get_console().print(table)


def show_loading(rows: Sequence[dict[str, Any]]) -> None:
    """Prints images per second on one core."""
    table = _table("JPEG file to augmented image of 192 pixels, images a second on one core")
    for heading in ("file", "ours", "official recipe", "times as fast", "spread"):
        table.add_column(heading, justify="right")
    for row in rows:
        rates, ratio = row["images_per_second"], row["ratio"]
        table.add_row(
            row["size"],
            f"{rates['ours']:.0f}",
            f"{rates['official recipe']:.0f}",
            f"{ratio['median']:.2f}",
            f"{ratio['lowest']:.2f} – {ratio['highest']:.2f}",
        )
    get_console().print(table)


def show_growth(growths: Sequence[Growth]) -> None:
    """Prints the fitted exponents."""
    table = _table("growth at a fixed window: exponent of the best power")
    for heading in ("with", "time", "activations"):
        table.add_column(heading, justify="left" if heading == "with" else "right")
    for growth in growths:
        table.add_row(growth.of, f"{growth.time_exponent:.2f}", f"{growth.memory_exponent:.2f}")
    get_console().print(table)


def show_compile_time(seconds: dict[str, float]) -> None:
    """Prints seconds by architecture, and their ratio to those of the first."""
    table = _table("compiling the blocks, at few channels")
    for heading in ("depths of", "seconds", "over the first"):
        table.add_column(heading, justify="left" if heading == "depths of" else "right")
    first = next(iter(seconds.values()))
    for name, taken in seconds.items():
        table.add_row(name, f"{taken:.1f}", f"{taken / first:.2f}")
    get_console().print(table)


def draw(path: Path, steps: Sequence[dict[str, Any]], growths: Sequence[Growth]) -> None:
    """Plots ratios as bars on the left, and growth with its exponents on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [
        (f"{row['row']} {row['precision']}{' compiled' if row['compiled'] else ''}: {peer}", ratio)
        for row in steps
        for peer, ratio in row["ratios"].items()
    ]
    figure = Figure(figsize=(12, max(4, 1 + 0.28 * len(names))), layout="constrained")
    FigureCanvasAgg(figure)
    bars, lines = figure.subplots(1, 2)
    medians = [ratio["median"] for _, ratio in names]
    below = [ratio["median"] - ratio["lowest"] for _, ratio in names]
    above = [ratio["highest"] - ratio["median"] for _, ratio in names]
    bars.barh(range(len(names)), medians, xerr=[below, above], color="#4c78a8", ecolor="#999999")
    bars.set_yticks(range(len(names)), [name for name, _ in names], fontsize=8)
    bars.invert_yaxis()
    bars.axvline(1, color="black", linewidth=0.8)
    bars.set_xlabel("time of a step, ours over theirs")
    for growth in growths:
        scale = [size / growth.sizes[0] for size in growth.sizes]
        taken = [seconds / growth.seconds[0] for seconds in growth.seconds]
        label = f"{growth.of}: exponent {growth.time_exponent:.2f}"
        lines.loglog(scale, taken, marker="o", label=label)
    if growths:
        lines.legend()
    lines.set_xlabel("size, over the smallest")
    lines.set_ylabel("time of a step, over the smallest")
    figure.savefig(path, dpi=120)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="", min_width=60)


def _add_columns(table: Table, *headings: str) -> None:
    """Adds two columns for names, then columns for numbers."""
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place < 2 else "right")


def _add_lines(table: Table, row: dict[str, Any], lines: Sequence[tuple[str, ...]]) -> None:
    """Adds a line per implementation; the first column describes the workload in several lines.

    On a single line, the description would leave no room for the numbers at 80 characters.
    """
    mode = "compiled" if row["compiled"] else "eager"
    work = (row["row"], row["model"], f"{row['precision']}, {mode}")
    columns = ["\n".join(column) for column in zip(*lines, strict=True)]
    table.add_row("\n".join(work), *columns, end_section=True)
