"""What the runs of a claim came to: table, differences and plot, and the page that they make."""

import csv
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

# Okabe and Ito's: told apart by the colour-blind too; markers differ as well.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = ["o", "s", "^", "D", "v", "P"]


@dataclass(frozen=True)
class Outcome:
    """One run of a claim, with its fine-tuning: where on the axes, and its figures by name.

    What is not finite, and what was not measured, is None.
    """

    place: dict[str, str]
    seed: int
    figures: dict[str, float | None]


@dataclass(frozen=True)
class Column:
    """A figure as a table shows it; `scale` 100 makes percent of shares.

    With `failed_above` a run beyond it, or without a finite figure, has failed: how many did is told,
    and the mean is of the others.
    """

    heading: str
    figure: str
    scale: float = 1.0
    digits: int = 1
    failed_above: float | None = None

    def kept(self, outcomes: Sequence[Outcome]) -> list[float]:
        """The figures of the runs that did not fail, scaled."""
        values = [outcome.figures.get(self.figure) for outcome in outcomes]
        limit = float("inf") if self.failed_above is None else self.failed_above
        return [self.scale * value for value in values if value is not None and value <= limit]

    def show(self, outcomes: Sequence[Outcome]) -> str:
        """`48.1 ± 4.5`: mean and standard deviation over seeds."""
        values = self.kept(outcomes)
        text = "–" if not values else f"{statistics.mean(values):.{self.digits}f}"
        if len(set(values)) > 1:
            text += f" ± {statistics.stdev(values):.{self.digits}f}"
        failed = len(outcomes) - len(values)
        if self.failed_above is not None and failed:
            text += f" ({failed} of {len(outcomes)} failed)"
        return text


def write(recipe: Mapping[str, Any], outcomes: Sequence[Outcome], out: Path) -> None:
    """Writes table, runs and plot, and prints the table."""
    out.mkdir(parents=True, exist_ok=True)
    text = as_text(recipe, outcomes)
    (out / "table.md").write_text(text)
    write_csv(outcomes, out / "runs.csv")
    plot(outcomes, recipe, out / "plot.png")
    Console().print(f"{text}\ntable.md, runs.csv and plot.png are in {out}", soft_wrap=True)


def write_page(
    claim: str, recipe: Mapping[str, Any], outcomes: Sequence[Outcome], seconds: float, docs: Path
) -> None:
    """Writes the documentation's page and its plot, of runs that took so many seconds of CPU."""
    plot(outcomes, recipe, docs / "images" / f"{claim}.png")
    seeds = len({outcome.seed for outcome in outcomes})
    took = (
        f"{seeds} seed{'s' if seeds > 1 else ''}; all took {seconds / 60:.0f} minutes of one core"
    )
    parts = [
        f"# {recipe['title']}",
        wrap(recipe["paper"]),
        f"    python scripts/claims.py {claim}",
        wrap(recipe["setting"]),
        wrap(f"{recipe['spread'].strip()} {took}, runs that other claims share included."),
        as_text(recipe, outcomes).strip(),
        f"![{recipe['title']}](../images/{claim}.png)",
        wrap(recipe.get("reading", "")),
    ]
    page = docs / "experiments" / f"{claim}.md"
    page.write_text("\n\n".join(part for part in parts if part) + "\n")
    Console().print(f"page: {page}", soft_wrap=True)


def wrap(text: str) -> str:
    """Paragraphs in lines of a page's width."""
    paragraphs = (" ".join(part.split()) for part in text.strip().split("\n\n"))
    return "\n\n".join(
        textwrap.fill(part, 110, break_long_words=False, break_on_hyphens=False)
        for part in paragraphs
    )


def as_text(recipe: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    """All tables of a claim."""
    columns = [Column(**column) for column in recipe["columns"]]
    differences = as_differences(outcomes, columns[0], recipe.get("compare"))
    return "\n".join([*as_tables(outcomes, columns), *([differences] if differences else [])])


def places(outcomes: Sequence[Outcome]) -> list[dict[str, str]]:
    """Each place on the axes once, in order."""
    return list({tuple(outcome.place.items()): outcome.place for outcome in outcomes}.values())


def values_of(outcomes: Sequence[Outcome], axis: str) -> list[str]:
    """The axis's values, in order."""
    return list(dict.fromkeys(outcome.place[axis] for outcome in outcomes))


def at(outcomes: Sequence[Outcome], **place: str) -> list[Outcome]:
    """Those at a place on some of the axes."""
    return [o for o in outcomes if all(o.place[axis] == value for axis, value in place.items())]


def as_tables(outcomes: Sequence[Outcome], columns: Sequence[Column]) -> list[str]:
    """One axis: a row a value, a column a figure. Two axes: a table a figure, a column a value."""
    axes = list(outcomes[0].place)
    if len(axes) == 1:
        [axis] = axes
        rows = [[axis, *(column.heading for column in columns), "seeds"]]
        for value in values_of(outcomes, axis):
            here = at(outcomes, **{axis: value})
            rows.append([value, *(column.show(here) for column in columns), str(len(here))])
        return [as_markdown(rows)]
    down, across = axes
    tables = []
    for column in columns:
        rows = [[f"{column.heading}: {down} \\ {across}", *values_of(outcomes, across)]]
        for value in values_of(outcomes, down):
            cells = [at(outcomes, **{down: value, across: a}) for a in values_of(outcomes, across)]
            rows.append([value, *(column.show(cell) if cell else "–" for cell in cells)])
        tables.append(as_markdown(rows))
    return tables


def as_differences(outcomes: Sequence[Outcome], column: Column, axis: str | None) -> str:
    """How far each value of an axis is from its first one, between runs of the same seed."""
    if axis is None:
        return ""
    first, *others = values_of(outcomes, axis)
    rows = [[f"{column.heading}, less that of {first}", "difference", "standard error", "pairs"]]
    for place in places(outcomes):
        if place[axis] not in others:
            continue
        theirs = {o.seed: column.kept([o]) for o in at(outcomes, **(place | {axis: first}))}
        mine = {o.seed: column.kept([o]) for o in at(outcomes, **place)}
        pairs = [
            mine[seed][0] - theirs[seed][0] for seed in mine if mine[seed] and theirs.get(seed)
        ]
        if pairs:
            error = statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else None
            shown = "–" if error is None else f"{error:.{column.digits}f}"
            difference = f"{statistics.mean(pairs):+.{column.digits}f}"
            rows.append([", ".join(place.values()), difference, shown, str(len(pairs))])
    return as_markdown(rows) if len(rows) > 1 else ""


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its heading."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_csv(outcomes: Sequence[Outcome], path: Path) -> None:
    """One row a run, with all digits."""
    names = list(dict.fromkeys(name for outcome in outcomes for name in outcome.figures))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*outcomes[0].place, "seed", *names])
        for outcome in outcomes:
            figures = [outcome.figures.get(name) for name in names]
            writer.writerow([*outcome.place.values(), outcome.seed, *figures])


def plot(outcomes: Sequence[Outcome], recipe: Mapping[str, Any], path: Path) -> None:
    """Mean and standard deviation of the first column, and each seed's run as a small point.

    The last axis lies along the plot, the other one's values have a line each; runs that failed are
    crosses at the limit.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    column = Column(**recipe["columns"][0])
    *others, along = list(outcomes[0].place)
    where, label = horizontal(outcomes, along, recipe)
    figure, frame = pyplot.subplots(figsize=(6, 4), layout="constrained")
    if others:
        for number, value in enumerate(values_of(outcomes, others[0])):
            draw(frame, at(outcomes, **{others[0]: value}), column, along, where, number, value)
        frame.legend(title=others[0], fontsize="small")
    else:
        draw(frame, outcomes, column, along, where)
    label_axis(frame, values_of(outcomes, along), where, is_placed="plot_x" in recipe)
    frame.set_xlabel(label)
    frame.set_ylabel(column.heading)
    frame.grid(alpha=0.3)
    frame.set_title("mean and standard deviation over seeds; small points: runs", fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw(
    frame: Any,
    outcomes: Sequence[Outcome],
    column: Column,
    along: str,
    where: Callable[[str], float],
    number: int = 0,
    label: str | None = None,
) -> None:
    """One line, or loose points where the axis has no numbers."""
    style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
    means: list[tuple[float, float, float]] = []
    for value in values_of(outcomes, along):
        here = at(outcomes, **{along: value})
        kept = column.kept(here)
        frame.plot([where(value)] * len(kept), kept, linestyle="", alpha=0.4, markersize=4, **style)
        if column.failed_above is not None and len(kept) < len(here):
            frame.plot(where(value), column.failed_above, "x", color=style["color"], markersize=9)
        if kept:
            spread = statistics.stdev(kept) if len(kept) > 1 else 0.0
            means.append((where(value), statistics.mean(kept), spread))
    joined = "-" if is_numeric(values_of(outcomes, along)) else ""
    across, up, spreads = zip(*means, strict=True) if means else ((), (), ())
    frame.errorbar(across, up, spreads, linestyle=joined, capsize=4, label=label, **style)


def horizontal(
    outcomes: Sequence[Outcome], along: str, recipe: Mapping[str, Any]
) -> tuple[Callable[[str], float], str]:
    """Where a value of the axis stands in the plot, and the name of that direction.

    `plot_x` of the recipe is a column whose mean it is; else the value itself, or its place in the
    row where it is no number.
    """
    values = values_of(outcomes, along)
    if "plot_x" in recipe:
        column = Column(**recipe["plot_x"])
        means = {v: statistics.mean(column.kept(at(outcomes, **{along: v})) or [0]) for v in values}
        return lambda value: means[value], column.heading
    if is_numeric(values):
        return float, along
    return lambda value: float(values.index(value)), along


def label_axis(
    frame: Any, values: Sequence[str], where: Callable[[str], float], *, is_placed: bool
) -> None:
    """Ticks, or names along the bottom, that tell the axis's values."""
    if is_placed:
        # Names of neighbours stand at different heights.
        for number, value in enumerate(sorted(values, key=where)):
            place = (where(value), 0.02 + 0.06 * (number % 3))
            frame.annotate(value, place, xycoords=("data", "axes fraction"), ha="center")
        frame.margins(x=0.1, y=0.25)
        return
    numbers = [where(value) for value in values]
    if is_numeric(values) and max(numbers) >= 8 * min(numbers) > 0:
        frame.set_xscale("log")
    frame.minorticks_off()
    frame.set_xticks(numbers, values)
    if not is_numeric(values):
        frame.margins(x=0.2)


def is_numeric(values: Sequence[str]) -> bool:
    """Whether all of them are numbers."""
    try:
        return all(float(value) or True for value in values)
    except ValueError:
        return False
