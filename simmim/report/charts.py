"""The charts of a report: which curves belong together, and their description in words."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from simmim.data.loader import MUCH
from simmim.report.run_record import Curve, RunRecord

# Long curves are split into this many pieces; each keeps its extremes, so that no spike is lost.
_PIECES = 250
_TABLE_ROWS = 12

_STEPS = "optimiser step"


class Series(NamedTuple):
    """A line of a chart; with `is_reference`, a baseline or earlier state that is drawn dashed."""

    name: str
    curve: Curve
    is_reference: bool = False


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        caption: how to read it.
        unit: the unit of the vertical axis.
        is_logarithmic: whether the vertical axis is logarithmic; no value may then be 0.
        is_share: whether values are in [0, 1] and shown as percentages.
        is_from_zero: whether the vertical axis begins at 0.
        horizontal: the label of the horizontal axis.
        marks: the tick labels of the horizontal axis, if they are not numbers.
    """

    title: str
    caption: str
    series: Sequence[Series]
    unit: str = ""
    is_logarithmic: bool = False
    is_share: bool = False
    is_from_zero: bool = False
    horizontal: str = _STEPS
    marks: Sequence[str] = field(default=())

    @property
    def name(self) -> str:
        """The name for anchors in the page."""
        return re.sub(r"[^a-z]+", "-", self.title.lower()).strip("-")

    @property
    def summary(self) -> str:
        """A one-sentence text alternative of the chart."""
        told = [
            f"{series.name} {self.show(series.curve.values[0])} at first, "
            f"{self.show(series.curve.values[-1])} at the end"
            if len(series.curve.values) > 1 and not series.is_reference
            else f"{series.name} {self.show(series.curve.values[-1])}"
            for series in self.series
        ]
        return f"{self.title}: {'; '.join(told)}."

    @property
    def table(self) -> tuple[list[str], list[list[str]]]:
        """The header and rows of a table of the same values, at evenly spaced points."""
        places, columns = self._aligned(self._thinned())
        shown = spread(range(len(places)), _TABLE_ROWS)
        rows = [
            [self._place(places[at]), *(_cell(column[at], self.show) for column in columns)]
            for at in shown
        ]
        return [self.horizontal, *(series.name for series in self.series)], rows

    def as_data(self) -> dict[str, Any]:
        """The chart's data for the page's script, in JSON types."""
        places, columns = self._aligned(self._thinned())
        return {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            "logarithmic": self.is_logarithmic,
            "share": self.is_share,
            "zero": self.is_from_zero,
            "horizontal": self.horizontal,
            "marks": list(self.marks),
            "series": [
                {"name": series.name, "reference": series.is_reference} for series in self.series
            ],
            "data": [places, *columns],
        }

    def show(self, value: float) -> str:
        """Formats a value with the chart's unit."""
        if not math.isfinite(value):
            return "not finite"
        if self.is_share:
            return f"{value:.1%}"
        return f"{value:.4g} {self.unit}".strip()

    def _place(self, place: int) -> str:
        return self.marks[place] if self.marks else f"{place:,}"

    def _thinned(self) -> list[Curve]:
        return [thin(series.curve) for series in self.series]

    @staticmethod
    def _aligned(curves: Sequence[Curve]) -> tuple[list[int], list[list[float | None]]]:
        """All steps in order, and each curve's values at them (None where it has none)."""
        places = sorted({step for curve in curves for step in curve.steps})
        columns: list[list[float | None]] = []
        for curve in curves:
            known = {
                step: float(f"{value:.5g}") if math.isfinite(value) else None
                for step, value in zip(*curve, strict=True)
            }
            columns.append([known.get(place) for place in places])
        return places, columns


def thin(curve: Curve, pieces: int = _PIECES) -> Curve:
    """Thins a curve to the minimum and maximum of each of `pieces` pieces, plus both ends."""
    count = len(curve.steps)
    if count <= 2 * pieces:
        return curve
    kept: set[int] = {0, count - 1}
    for piece in range(pieces):
        own = range(piece * count // pieces, (piece + 1) * count // pieces)
        kept |= {min(own, key=curve.values.__getitem__), max(own, key=curve.values.__getitem__)}
    order = sorted(kept)
    return Curve([curve.steps[at] for at in order], [curve.values[at] for at in order])


def spread(items: Iterable[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spaced, including the first and the last."""
    every = list(items)
    if len(every) <= count:
        return every
    if count == 1:
        return every[-1:]
    last = len(every) - 1
    return [every[round(at * last / (count - 1))] for at in range(count)]


def charts_of(record: RunRecord) -> list[Chart]:
    """The charts of what this run logged, in the order of the page."""
    quality = _pretraining if record.stage == "pretrain" else _labelled
    return [*quality(record), *_training(record), *_speed(record), *_amplitudes(record)]


def missing_from(record: RunRecord) -> list[str]:
    """Descriptions of optional metrics that this run did not log."""
    expected = {
        "train/gradient_norm": "gradient norm",
        "train/data_wait": "share of time waiting for data",
        "train/peak_memory_bytes": "peak memory",
    }
    missing = [words for name, words in expected.items() if not record.curve(name).steps]
    if not any(name.startswith("amplitude/") for name in record.curves):
        missing.append("activation amplitude by block")
    return missing


def _pretraining(record: RunRecord) -> list[Chart]:
    series = [
        *_logged(record, {"train/loss": "training", "val/loss": "held out"}),
        *_levels(
            record,
            {
                "val/baseline_visible_mean": "visible mean",
                "val/baseline_nearest_visible": "nearest visible pixel",
            },
        ),
    ]
    charts = _unless_empty(
        "Masked loss",
        "Mean absolute error of hidden pixels. Held-out masks are the same all along; how low they "
        "come tells how well fine-tuning will do. Dashed: what needs no learning.",
        series,
    )
    neighbours = _logged(record, {"val/knn_top1": "held-out top-1 of nearest neighbours"})
    return charts + _unless_empty(
        "Nearest neighbours",
        "Held-out images whose class their most similar training images vote for.",
        neighbours,
        is_share=True,
    )


def _labelled(record: RunRecord) -> list[Chart]:
    one = record.quality
    quality = _logged(
        record,
        {
            f"train/{one.metric}": f"training {one.shown}",
            f"val/{one.metric}": f"held-out {one.shown}",
            **{f"val/{name}": f"held-out {shown}" for name, shown in one.others.items()},
        },
    )
    held_out = record.curve(f"val/{one.metric}")
    if held_out.steps:
        level = [held_out.steps[0], held_out.steps[-1]]
        if one.baseline is not None:
            name = one.baseline_shown.removesuffix(" is").removesuffix(" gives")
            quality.append(Series(name, Curve(level, [one.baseline] * 2), is_reference=True))
        direct = record.facts.get("untrained", {}).get(f"direct/{one.metric}")
        if direct is not None:
            quality.append(Series("direct", Curve(level, [direct] * 2), is_reference=True))
    shown = {"val/loss", f"val/{one.metric}", *(f"val/{name}" for name in one.others)}
    further = [name for name in record.curves if name.startswith("val/") and name not in shown]
    return [
        *_unless_empty(
            "Accuracy" if one.metric == "top1" else one.shown,
            f"{one.explanation} Training images are seen as held-out ones are, without augmentation: "
            "the distance between the two is what was learned by heart.",
            quality,
            is_share=True,
        ),
        *_unless_empty(
            "Loss",
            "That of training is of augmented and mixed images, and may stay above the held-out one.",
            _logged(record, {"train/loss": "training", "val/loss": "held out"}),
        ),
        *(
            chart
            for name in further
            for chart in _unless_empty(
                f"Held-out {name.removeprefix('val/')}",
                "In the units of the labels.",
                _logged(record, {name: "held out"}),
            )
        ),
    ]


def _training(record: RunRecord) -> list[Chart]:
    norms = record.curve("train/gradient_norm").values
    return [
        *_unless_empty(
            "Learning rate",
            "Of the layer that learns fastest.",
            _logged(record, {"train/lr": "rate"}),
        ),
        *_unless_empty(
            "Gradient norm",
            "Before clipping. Rising for long or jumping by orders of magnitude, it announces that "
            "training diverges.",
            _logged(record, {"train/gradient_norm": "norm"}),
            is_logarithmic=min(norms, default=0) > 0,
        ),
    ]


def _speed(record: RunRecord) -> list[Chart]:
    memory = record.curve("train/peak_memory_bytes")
    in_gib = Curve(memory.steps, [value / 2**30 for value in memory.values])
    return [
        *_unless_empty(
            "Throughput",
            "Images a second over all devices, data and logging included.",
            _logged(record, {"train/images_per_second": "images a second"}),
            unit="images/s",
            is_from_zero=True,
        ),
        *_unless_empty(
            "Waiting for data",
            f"Share of the time in which devices had nothing to do. Above {MUCH:.0%}, more loader "
            "processes (data.num_workers) or shards help.",
            _logged(record, {"train/data_wait": "waiting"}),
            is_share=True,
            is_from_zero=True,
        ),
        *_unless_empty(
            "Peak memory",
            "Most memory held at once until then, by the first process.",
            [Series("peak", in_gib)] if in_gib.steps else [],
            unit="GiB",
            is_from_zero=True,
        ),
    ]


def _amplitudes(record: RunRecord) -> list[Chart]:
    """Activation amplitude against depth at some steps, as in figure 2 of the Swin V2 paper."""
    blocks = {
        (int(found[1]), int(found[2])): curve
        for name, curve in record.curves.items()
        if (found := re.fullmatch(r"amplitude/stage(\d+)_block(\d+)", name))
    }
    order = sorted(blocks)
    if not order:
        return []
    known = {place: dict(zip(*blocks[place], strict=True)) for place in order}
    steps = [step for step in known[order[0]] if all(step in known[place] for place in order)]
    series = []
    for step in spread(steps, 4):
        values = [known[place][step] for place in order]
        series.append(
            Series(f"step {step:,}", Curve(list(range(len(order))), values), step != steps[-1])
        )
    return _unless_empty(
        "Activation amplitude by block",
        "How large activations leave each block. With res-post-norm they stay level with depth; "
        "where they grow by orders of magnitude, deep models become unstable.",
        series,
        is_logarithmic=all(value > 0 for entry in series for value in entry.curve.values),
        horizontal="block",
        marks=[f"{stage}.{block}" for stage, block in order],
    )


def _logged(record: RunRecord, names: dict[str, str]) -> list[Series]:
    return [
        Series(words, record.curve(name))
        for name, words in names.items()
        if record.curve(name).steps
    ]


def _levels(record: RunRecord, names: dict[str, str]) -> list[Series]:
    """Baselines as horizontal lines from the first step to the last."""
    series = []
    for name, words in names.items():
        curve = record.curve(name)
        if curve.last is not None:
            ends = [1, max(record.steps, 2)]
            series.append(Series(words, Curve(ends, [curve.last] * 2), is_reference=True))
    return series


def _unless_empty(title: str, caption: str, series: list[Series], **options: Any) -> list[Chart]:
    return [Chart(title, caption, series, **options)] if series else []


def _cell(value: float | None, show: Callable[[float], str]) -> str:
    return "–" if value is None else show(value)
