"""A sweep's report: its runs in a table, best first, with their held-out curves in one chart."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from simmim.report.charts import Chart, Series, spread
from simmim.report.html import REPORT, verdict_of, write_page
from simmim.report.run_record import RunRecord, read_run
from simmim.report.verdict import Verdict

_MOST_LINES = 8
_LONGEST_LABEL = 40


class Job(NamedTuple):
    """One run of a sweep: `objective` is its newest value, `link` points to the run's own report."""

    record: RunRecord
    name: str
    values: list[str]
    objective: float | None
    verdict: Verdict
    failure: str
    link: str


def is_run(folder: Path) -> bool:
    """Whether the folder is a run directory."""
    return (folder / "metrics.csv").is_file() or (folder / ".hydra").is_dir()


def is_sweep(folder: Path) -> bool:
    """Whether the folder contains run directories."""
    return folder.is_dir() and any(is_run(job) for job in folder.iterdir() if job.is_dir())


def write_sweep_report(sweep: str | Path) -> Path:
    """Writes `report.html` from whatever a sweep's jobs have written; returns its path."""
    folder = Path(sweep)
    records = [read_run(job) for job in sorted(folder.iterdir()) if job.is_dir() and is_run(job)]
    options = [_typed(record) for record in records]
    swept = find_swept(options)
    objective = find_objective(records)
    jobs = [
        Job(
            record,
            record.run_dir.name,
            [typed.get(name, "–") for name in swept],
            record.last(objective),
            verdict_of(record),
            _failure(record.run_dir),
            f"{record.run_dir.name}/{REPORT}" if (record.run_dir / REPORT).is_file() else "",
        )
        for record, typed in zip(records, options, strict=True)
    ]
    jobs.sort(key=lambda job: _rank(job.objective, objective))
    charts = _charts(jobs, swept, objective)
    return write_page(
        folder / REPORT,
        "sweep.html.j2",
        name=folder.resolve().name,
        jobs=jobs,
        swept=swept,
        objective=objective,
        charts=charts,
        chart_data=[chart.as_data() for chart in charts],
    )


def find_swept(options: Sequence[dict[str, str]]) -> list[str]:
    """The options that differ between the runs, in the order in which they were typed."""
    names = dict.fromkeys(name for typed in options for name in typed)
    return [name for name in names if len({typed.get(name) for typed in options}) > 1]


def find_objective(records: Sequence[RunRecord]) -> str:
    """The metric that the sweep optimises."""
    stated = (record.option("objective") for record in records)
    return next((str(name) for name in stated if name), "val/loss")


def _typed(record: RunRecord) -> dict[str, str]:
    pairs = (str(override).partition("=") for override in record.overrides)
    return {name.lstrip("+"): value for name, _, value in pairs if name != "run_dir"}


def _failure(run_dir: Path) -> str:
    path = run_dir / "failure.txt"
    return path.read_text().strip() if path.is_file() else ""


def _rank(value: float | None, objective: str) -> float:
    """A sort key that puts the best first (smallest loss, largest other metric), unknown ones last."""
    if value is None or not math.isfinite(value):
        return math.inf
    return value if "loss" in objective else -value


def _charts(jobs: Sequence[Job], swept: Sequence[str], objective: str) -> list[Chart]:
    """Charts of the objective and the training loss; of a selection if there are many runs."""
    shown = spread(jobs, _MOST_LINES)
    charts = []
    some = ""
    if len(jobs) > len(shown):
        some = f" {len(shown)} of {len(jobs)} runs, from the best to the worst."
    for name, title, caption in (
        (objective, f"Held out: {objective}", "The sweep's objective, by run."),
        ("train/loss", "Training loss", "Of each run's logged steps."),
    ):
        series = [
            Series(_label(job, swept), job.record.curve(name))
            for job in shown
            if job.record.curve(name).steps
        ]
        if series:
            share = "top" in name
            charts.append(Chart(title, caption + some, series, is_share=share))
    return charts


def _label(job: Job, swept: Sequence[str]) -> str:
    parts: list[Any] = [
        f"{name.rpartition('.')[2]} {value}" for name, value in zip(swept, job.values, strict=True)
    ]
    label = ", ".join(parts)
    return label if 0 < len(label) <= _LONGEST_LABEL else job.name
