"""Reads a run's record from whatever its directory holds, during training or afterwards."""

import contextlib
import csv
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from typing_extensions import TypedDict

from simmim.data.unreadable.skipped_list import SKIPPED
from simmim.reconstruct.contact_sheet import sheets_in
from simmim.training.run_dir.lock import writer_is_gone
from simmim.utils.files import as_json, written_beside

FACTS = "run.json"
UNUSUAL = "unusual_steps.jsonl"

State = Literal["running", "finished", "interrupted", "failed"]


class RunFacts(TypedDict, total=False):
    """The contents of `run.json`: facts written when the run starts, and its state since."""

    stage: str
    state: State
    reason: str  # why it failed
    started: str  # local time, ISO 8601
    updated: str
    total_steps: int
    effective_batch: int
    hidden_share: float  # masked share of each image, in pretraining
    task: str  # of a labelled model
    quality: dict[str, Any]  # what it is judged by: `simmim.tasks.module.Quality`
    classes: int  # number of classes of a classifier
    untrained: dict[str, float]  # validation metrics before training, in transfer
    git_revision: str | None
    python: str
    packages: dict[str, str]
    platform: str
    device: str
    processes: int
    precision: str


class Curve(NamedTuple):
    """A metric over training: numbers of completed optimiser steps, and the values at them."""

    steps: list[int]
    values: list[float]

    @property
    def last(self) -> float | None:
        """The newest value; None if there is none."""
        return self.values[-1] if self.values else None


NOTHING = Curve([], [])


class Quality(NamedTuple):
    """The metric that a labelled run is judged by, from 0 to 1, as its task recorded it.

    Attributes:
        metric: its name, without `val/`.
        shown: its name in words.
        baseline: what a guess that ignores the image reaches; None if not known.
        baseline_shown: that guess in words, as the subject and verb of a sentence.
        explanation: a sentence on what it is.
        others: other metrics of the same scale, by name, in words.
    """

    metric: str
    shown: str
    baseline: float | None
    baseline_shown: str
    explanation: str
    others: Mapping[str, str]


@dataclass(frozen=True)
class RunRecord:
    """A run as recorded in its directory.

    Attributes:
        curves: the columns of `metrics.csv`, by name.
        summary: `summary.json`, but empty unless the run is finished: until then, the file is from
            an earlier run, or from this run before it was extended.
        configuration: the resolved configuration.
        overrides: the command-line overrides.
        sheets: contact sheets of reconstructions, by step.
        skipped_steps, spikes: steps in `unusual_steps.jsonl`, counted from 0 as in the file.
        unreadable: the number of images that could not be read.
    """

    run_dir: Path
    facts: RunFacts = field(default_factory=RunFacts)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    sheets: Mapping[int, Path] = field(default_factory=dict)
    skipped_steps: Sequence[int] = ()
    spikes: Sequence[int] = ()
    unreadable: int = 0

    @property
    def stage(self) -> str:
        """`pretrain`, `finetune` or `transfer`."""
        known = self.facts.get("stage") or self.summary.get("stage")
        return str(known or ("finetune" if "val/top1" in self.curves else "pretrain"))

    @property
    def state(self) -> State:
        """The run's state; a run that was killed on another machine still counts as running."""
        return self.facts.get("state", "finished" if self.summary else "running")

    @property
    def is_over(self) -> bool:
        """Whether it has ended for good; an interrupted run resumes with the same command."""
        return self.state in ("finished", "failed")

    @property
    def steps(self) -> int:
        """The number of optimiser steps logged so far."""
        return max((curve.steps[-1] for curve in self.curves.values() if curve.steps), default=0)

    @property
    def skipped_in_a_row(self) -> int:
        """The number of consecutive skipped steps up to the newest."""
        skipped = set(self.skipped_steps)
        newest = max(skipped, default=-1)
        if newest < self.steps - 1:  # a later step was logged
            return 0
        return next(count for count in itertools.count() if newest - count not in skipped)

    @property
    def quality(self) -> Quality:
        """What a labelled run is judged by; runs before there were tasks classified."""
        if recorded := self.facts.get("quality"):
            return Quality(**{name: recorded[name] for name in Quality._fields})
        classes = self.facts.get("classes")
        return Quality(
            "top1",
            "top-1",
            1 / classes if classes else None,
            "chance is",
            "Share of images whose class was predicted correctly.",
            {"top5": "top-5"},
        )

    def curve(self, name: str) -> Curve:
        """The metric of this name; empty if it was never logged."""
        return self.curves.get(name, NOTHING)

    def last(self, name: str) -> float | None:
        """The metric's newest value; that of the summary if it was never logged."""
        value = self.curve(name).last
        if value is None:
            value = self.summary.get("metrics", {}).get(name)
        return value

    def option(self, name: str) -> Any:
        """A configuration option by its dotted name; None if there is none."""
        node: Any = self.configuration
        for part in name.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return node


def read_run(
    run_dir: str | Path,
    pending: Mapping[str, float] | None = None,
    first_step: int | None = None,
) -> RunRecord:
    """Reads a run's record; missing files are treated as empty.

    Args:
        run_dir: the run's directory.
        pending: a row of metrics that is not in the file yet.
        first_step: counted from 0; rows of the file from this step on are ignored (None: none are).
    """
    folder = Path(run_dir)
    facts = _read_json(folder / FACTS)
    if facts.get("state") == "running" and writer_is_gone(folder):
        facts["state"] = "interrupted"  # it was killed and could not write this itself
    # Runs of earlier versions have no facts.
    is_finished = facts.get("state", "finished") == "finished"
    exported_config = _read_yaml(folder / ".hydra" / "resolved.yaml")
    unusual = _read_lines(folder / UNUSUAL)
    return RunRecord(
        folder,
        facts=facts,  # type: ignore[arg-type]
        curves=read_curves(folder / "metrics.csv", pending, first_step, facts.get("total_steps")),
        summary=_read_json(folder / "summary.json") if is_finished else {},
        configuration=exported_config.get("config", {}),
        overrides=exported_config.get("overrides", []),
        sheets=sheets_in(folder / "reconstructions"),
        skipped_steps=[line["step"] for line in unusual if line["event"] == "skipped"],
        spikes=[line["step"] for line in unusual if line["event"] == "spike"],
        unreadable=len({line["image"] for line in _read_lines(folder / SKIPPED)}),
    )


def read_curves(
    path: Path,
    pending: Mapping[str, float] | None = None,
    first_step: int | None = None,
    total_steps: int | None = None,
) -> dict[str, Curve]:
    """Reads the columns of `metrics.csv` by completed steps; non-finite values become nan.

    Lightning counts steps from 0, so 1 is added to the logged step. Metrics of the final weights of
    training that ended in the middle of an epoch are already logged at `total_steps`.
    """
    rows: list[Mapping[str, Any]] = []
    if path.is_file():
        with path.open(newline="") as file:
            rows = [
                row
                for row in csv.DictReader(file)
                if first_step is None or (row.get("step") and float(row["step"]) < first_step)
            ]
    if pending:
        rows.append(pending)
    curves: dict[str, Curve] = {}
    for row in rows:
        for name, value in row.items():
            if name in ("step", "epoch") or value in (None, "") or row.get("step") in (None, ""):
                continue
            number, step = float(value), int(float(row["step"]))
            curve = curves.setdefault(name, Curve([], []))
            curve.steps.append(step if step == total_steps else step + 1)
            curve.values.append(number if math.isfinite(number) else math.nan)
    return curves


def write_facts(run_dir: Path, facts: RunFacts) -> None:
    """Atomically writes `run.json`."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with written_beside(run_dir / FACTS) as beside:
        beside.write_text(as_json(facts) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text()) if path.is_file() else {}
    assert isinstance(content, dict)
    return content


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads one JSON object per line, ignoring a truncated line of a killed process."""
    objects = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            objects.append(json.loads(line))
    return objects


def _read_yaml(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text()) if path.is_file() else {}
    assert isinstance(content, dict)
    return content
