"""Gathers a sweep's summaries: `sweep.csv`, `sweep.md`, `sweep.png`, and `report.html` with its curves.

    python scripts/gather_sweep.py SWEEP                       its objective
    python scripts/gather_sweep.py SWEEP --figure val/top5     another figure in the plot

SWEEP is the `run_dir` of `python -m simmim.<stage> -m ...`. Runs that differ in their seed alone are
averaged. Jobs that failed, or have not finished, are named.
"""

import argparse
import csv
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

OF_THE_RUN = ("steps", "images_per_second", "seconds")
MOST_LINES = 8


class Job(NamedTuple):
    """One run of the sweep: what was typed for it, and what it came to (None: not finished)."""

    name: str
    options: dict[str, Any]
    figures: dict[str, float | None] | None
    objective: str | None
    failure: str | None


class Point(NamedTuple):
    """Runs that differ in their seed alone: their options' values, mean and standard deviation."""

    values: tuple[Any, ...]
    mean: float
    deviation: float
    runs: int


def main() -> None:
    """Reads the jobs, prints the table, and writes all of it into the sweep's directory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path, help="the sweep's directory")
    parser.add_argument("--figure", help="what to plot; by default the sweep's objective")
    arguments = parser.parse_args()
    jobs = [
        read_job(path.parent) for path in sorted(arguments.sweep.glob("*/.hydra")) if path.is_dir()
    ]
    finished = [job for job in jobs if job.figures is not None]
    if not finished:
        sys.exit(f"error: {arguments.sweep} holds no finished run of {len(jobs)}")
    options = swept(finished)
    figure = arguments.figure or find_objective(finished)
    known = list(dict.fromkeys(name for job in finished for name in job.figures or {}))
    if figure not in known:
        sys.exit(f"error: there is no figure {figure}; use {', '.join(known)}")
    finished.sort(key=lambda job: [sort_key(job.options.get(name)) for name in options])
    rows = [[job.options.get(name) for name in options] for job in finished]
    figures = [[(job.figures or {}).get(name) for name in known] for job in finished]
    headings = [*options, *known]
    write_csv(headings, finished, rows, figures, arguments.sweep / "sweep.csv")
    cells = [
        [*map(show, values), *map(show, results)]
        for values, results in zip(rows, figures, strict=True)
    ]
    tables = [(headings, cells)]
    axes = [name for name in options if name != "seed"] or options
    points = average(finished, axes, figure)
    if any(point.runs > 1 for point in points):
        averaged = [[*map(show, point.values), show_spread(point)] for point in points]
        tables.append(([*axes, f"{figure}, mean ± standard deviation (runs)"], averaged))
    (arguments.sweep / "sweep.md").write_text("\n".join(as_markdown(*table) for table in tables))
    for table in tables:
        print_table(*table, title=f"{arguments.sweep}: {len(finished)} of {len(jobs)} finished")
    for job in jobs:
        if job.failure is not None:
            Console().print(f"failed: {job.name}: {job.failure}", soft_wrap=True)
        elif job.figures is None:
            Console().print(f"not finished: {job.name}", soft_wrap=True)
    plot(points, axes, figure, arguments.sweep / "sweep.png")
    from simmim.report.sweep import write_sweep_report

    write_sweep_report(arguments.sweep)
    Console().print(
        f"sweep.csv, sweep.md, sweep.png and report.html are in {arguments.sweep}", soft_wrap=True
    )


def read_job(folder: Path) -> Job:
    """What one job left in its directory."""
    finished, failure = folder / ".hydra" / "finished.yaml", folder / "failure.txt"
    reason = failure.read_text().strip() if failure.is_file() else None
    if not (finished.is_file() and (folder / "summary.json").is_file()):
        return Job(folder.name, {}, None, None, reason)
    record = yaml.safe_load(finished.read_text())
    summary = json.loads((folder / "summary.json").read_text())
    figures = summary["metrics"] | {name: summary[name] for name in OF_THE_RUN if name in summary}
    options = {}
    for override in record["overrides"]:
        name, _, value = override.partition("=")
        options[name.lstrip("+")] = parse(value)
    return Job(folder.name, options, figures, record["config"].get("objective"), reason)


def parse(value: str) -> Any:
    """A number where it is one, else the text; YAML takes `1e-3` for text."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value


def swept(jobs: Sequence[Job]) -> list[str]:
    """The options that differ between the jobs, in the order in which they were typed."""
    names = dict.fromkeys(name for job in jobs for name in job.options)
    return [
        name for name in names if len({repr(job.options.get(name)) for job in jobs}) > 1
    ] or list(names)[:1]


def find_objective(jobs: Sequence[Job]) -> str:
    """The figure that the sweep was for, or the first that there is."""
    return jobs[0].objective or next(iter(jobs[0].figures or {}))


def average(jobs: Sequence[Job], axes: Sequence[str], figure: str) -> list[Point]:
    """One point for all runs with the same values; those without the figure are left out."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for job in jobs:
        value = (job.figures or {}).get(figure)
        if value is not None:
            key = tuple(job.options.get(name) for name in axes)
            groups.setdefault(key, []).append(value)
    return [
        Point(
            key,
            statistics.mean(values),
            statistics.stdev(values) if len(values) > 1 else 0.0,
            len(values),
        )
        for key, values in groups.items()
    ]


def sort_key(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, before text."""
    if isinstance(value, int | float):
        return False, value, ""
    return True, 0.0, str(value)


def show(value: Any) -> str:
    """A table's cell; what is not finite stands as null in a summary."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show_spread(point: Point) -> str:
    """`0.412 ± 0.003 (3)`."""
    spread = f" ± {point.deviation:.2g}" if point.runs > 1 else ""
    return f"{show(point.mean)}{spread} ({point.runs})"


def write_csv(
    headings: Sequence[str],
    jobs: Sequence[Job],
    rows: Sequence[Sequence[Any]],
    figures: Sequence[Sequence[Any]],
    path: Path,
) -> None:
    """One row a finished job, with all digits and the name of its directory."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["job", *headings])
        for job, row, results in zip(jobs, rows, figures, strict=True):
            writer.writerow([job.name, *row, *results])


def as_markdown(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """The table for a report."""
    lines = [headings, ["---"] * len(headings), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def print_table(headings: Sequence[str], cells: Sequence[Sequence[str]], title: str) -> None:
    """Prints the table; how long the runs took stands in the files."""
    table = Table(title=title)
    shown = [at for at, heading in enumerate(headings) if heading not in OF_THE_RUN]
    for at in shown:
        table.add_column(headings[at], justify="right", overflow="fold")
    for row in cells:
        table.add_row(*(escape(row[at]) for at in shown))
    Console().print(table)


def plot(points: Sequence[Point], axes: Sequence[str], figure: str, path: Path) -> None:
    """The figure against each option: one in one panel, a grid of two as lines, others a panel each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = line_axis(points, axes)
    panels = [1 - lines] if lines is not None else range(len(axes))
    canvas, frames = pyplot.subplots(
        1,
        len(panels),
        figsize=(max(5, 4 * len(panels)), 4),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    for frame, axis in zip(frames[0], panels, strict=True):
        groups = {None: list(points)}
        if lines is not None:
            groups = {
                value: [point for point in points if point.values[lines] == value]
                for value in dict.fromkeys(point.values[lines] for point in points)
            }
        numeric = all(isinstance(point.values[axis], int | float) for point in points)
        # Of several options, each panel shows the others' variety too.
        joined = "-" if lines is not None or len(axes) == 1 else ""
        for value, group in groups.items():
            at = [point.values[axis] if numeric else str(point.values[axis]) for point in group]
            frame.errorbar(
                at,
                [point.mean for point in group],
                [point.deviation for point in group],
                marker="o",
                linestyle=joined if numeric else "",
                capsize=3,
                label=None if lines is None else f"{axes[lines]} {show(value)}",
            )
        if numeric and spans_decades([point.values[axis] for point in points]):
            frame.set_xscale("log")
        frame.set_xlabel(axes[axis])
        frame.grid(alpha=0.3)
        if lines is not None:
            frame.legend()
    frames[0][0].set_ylabel(figure)
    if any(point.runs > 1 for point in points):
        canvas.suptitle("mean and standard deviation over seeds", fontsize="medium")
    canvas.savefig(path, dpi=150)


def line_axis(points: Sequence[Point], axes: Sequence[str]) -> int | None:
    """Of two options on a grid, the one whose values each get a line: that with fewer; else None."""
    if len(axes) != 2:
        return None
    counts = [len({point.values[axis] for point in points}) for axis in (0, 1)]
    fewer = 0 if counts[0] < counts[1] else 1
    is_grid = len(points) > max(counts) or min(counts) == 1
    return fewer if is_grid and counts[fewer] <= MOST_LINES else None


def spans_decades(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows the values better."""
    return min(values) > 0 and math.log10(max(values) / min(values)) >= 1


if __name__ == "__main__":
    main()
