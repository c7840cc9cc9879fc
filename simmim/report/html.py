"""The report page: one self-contained HTML file that needs no network access."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from simmim.analysis.position_bias import BlockAttention
from simmim.data.unreadable.skipped_list import SKIPPED
from simmim.report.attention import read_attention
from simmim.report.charts import charts_of, missing_from, spread
from simmim.report.images import heat_map, read_gallery
from simmim.report.labelled_rules import judge_labelled, labelled_metrics
from simmim.report.pretraining_rules import judge_pretraining, pretraining_metrics
from simmim.report.run_record import UNUSUAL, RunRecord, read_run
from simmim.report.verdict import Verdict
from simmim.utils.files import written_beside

REPORT = "report.html"

_PICTURE_BYTES = 7_000_000
_MOST_BLOCKS = 48
_NEWEST_STEPS = 3


class Fact(NamedTuple):
    """A named value of the report, as text."""

    name: str
    value: str
    note: str = ""


def write_report(
    run_dir: str | Path,
    *,
    pictures: int = 24,
    pending: Mapping[str, float] | None = None,
    first_step: int | None = None,
    attention: Sequence[BlockAttention] | None = None,
) -> Path:
    """Atomically writes `report.html` from whatever the run directory holds; returns its path.

    Args:
        run_dir: the run's directory.
        pictures: the number of steps, evenly spaced, whose reconstructions are shown.
        pending: a row of metrics that is not in the file yet.
        first_step: counted from 0; rows of the file from this step on are ignored (None: none are).
        attention: attention of the current encoder (None: of the last one written to disk).
    """
    folder = Path(run_dir)
    record = read_run(folder, pending, first_step)
    if attention is None:
        attention = read_attention(folder)
    charts = charts_of(record)
    return write_page(
        folder / REPORT,
        "run.html.j2",
        record=record,
        name=folder.resolve().name,
        verdict=verdict_of(record),
        figures=key_figures(record),
        charts=charts,
        chart_data=[chart.as_data() for chart in charts],
        missing=missing_from(record),
        gallery=read_gallery(record.sheets, most_steps=pictures, most_bytes=_PICTURE_BYTES),
        heat_maps=[heat_map(block) for block in spread(attention, _MOST_BLOCKS)],
        blocks=len(attention),
        configuration=yaml.safe_dump(
            dict(record.configuration), sort_keys=False, allow_unicode=True
        ),
        circumstances=circumstances(record),
    )


def write_page(path: Path, template: str, **content: Any) -> Path:
    """Renders a template of `page/` and writes it atomically."""
    page = _templates().get_template(template).render(**content)
    with written_beside(path) as beside:
        beside.write_text(page, encoding="utf-8")
    return path


def verdict_of(record: RunRecord) -> Verdict:
    """The verdict, by the rules of the run's stage."""
    if record.stage == "pretrain":
        return judge_pretraining(pretraining_metrics(record))
    return judge_labelled(labelled_metrics(record))


def key_figures(record: RunRecord) -> list[Fact]:
    """The most important numbers, shown first."""
    summary = record.summary
    rate = summary.get("images_per_second") or record.last("train/images_per_second")
    memory = summary.get("peak_memory_bytes") or record.last("train/peak_memory_bytes")
    total = record.facts.get("total_steps", record.steps)
    known = [
        ("Steps", record.steps or None, f"of {total:,}", "{:,}".format),
        *_of_quality(record),
        ("Throughput", rate, "images/s", "{:.4g}".format),
        ("Waiting for data", record.last("train/data_wait"), "of the time", "{:.1%}".format),
        ("Peak memory", memory and memory / 2**30, "GiB", "{:.2f}".format),
        ("Took", summary.get("seconds"), "", _duration),
        ("Skipped steps", *_unusual(record.skipped_steps)),
        ("Loss spikes", *_unusual(record.spikes)),
        ("Unreadable images", record.unreadable or None, f"in {SKIPPED}", "{:,}".format),
    ]
    return [Fact(name, show(value), note) for name, value, note, show in known if value is not None]


def _unusual(steps: Sequence[int]) -> tuple[int | None, str, Callable[[Any], str]]:
    newest = ", ".join(map(str, steps[-_NEWEST_STEPS:]))
    more = "… " if len(steps) > _NEWEST_STEPS else ""
    return len(steps) or None, f"{more}{newest} in {UNUSUAL}", "{:,}".format


def _of_quality(record: RunRecord) -> list[tuple[str, Any, str, Callable[[Any], str]]]:
    if record.stage != "pretrain":
        one, show = record.quality, "{:.1%}".format
        return [
            (f"Held-out {one.shown}", record.last(f"val/{one.metric}"), "", show),
            (
                f"Training {one.shown}",
                record.last(f"train/{one.metric}"),
                "without augmentation",
                show,
            ),
        ]
    figures = pretraining_metrics(record)
    ratio = figures.ratio if math.isfinite(figures.ratio) else None
    return [
        ("Held-out masked loss", figures.held_out.last, "", "{:.3f}".format),
        ("Over visible mean", ratio, "1 is no better", "{:.2f}".format),
    ]


def circumstances(record: RunRecord) -> list[Fact]:
    """The environment of the run: device, versions and Git revision."""
    facts = record.facts
    packages = facts.get("packages") or record.summary.get("packages") or {}
    known = {
        "Run directory": str(record.run_dir),
        "Git revision": facts.get("git_revision") or record.summary.get("git_revision"),
        "Started": facts.get("started"),
        "Last written": facts.get("updated"),
        "Device": facts.get("device"),
        "Processes": facts.get("processes"),
        "Precision": facts.get("precision"),
        "System": facts.get("platform"),
        "Python": facts.get("python") or record.summary.get("python"),
        **packages,
    }
    return [Fact(name, str(value)) for name, value in known.items() if value]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


@cache
def _templates() -> Environment:
    loader = PackageLoader("simmim.report", "page")
    environment = Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Scripts and styles are inlined into the page unescaped.
    environment.globals["inline"] = lambda name: Markup(loader.get_source(environment, name)[0])
    return environment
