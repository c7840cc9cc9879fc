"""A run's verdict: from its metrics to a word, a sentence, its likely cause, and what to try.

`pretraining_rules.py` and `classification_rules.py` hold the tables that it is read from.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from simmim.report.run_record import Curve

Kind = Literal[
    "learning well",
    "learning",
    "learning slowly",
    "not learning yet",
    "no better than baseline",
    "diverged",
    "overfitting",
    "too early to tell",
]

Metrics = TypeVar("Metrics")

# So many steps in a row without a finite loss are no accident of one batch.
_NO_ACCIDENT = 3


class Verdict(NamedTuple):
    """How a run does, and by which metrics; `cause` and `advice` are empty where all is well."""

    kind: Kind
    sentence: str
    cause: str = ""
    advice: Sequence[str] = ()

    @property
    def level(self) -> Literal["good", "fair", "bad"]:
        """Whether to let it run, to think of improving it, or to stop and mend it."""
        if self.kind == "learning well":
            return "good"
        return "bad" if self.kind in ("no better than baseline", "diverged") else "fair"


def is_finite(held_out: Curve, training: Curve, skipped_in_a_row: int) -> bool:
    """Whether the losses are still numbers: the newest held-out one, and any of the newest steps.

    A step whose loss is none is logged, skipped, and does no harm.
    """
    if held_out.last is not None and not math.isfinite(held_out.last):
        return False
    logged = itertools.takewhile(lambda value: not math.isfinite(value), reversed(training.values))
    return max(skipped_in_a_row, len(list(logged))) < _NO_ACCIDENT


@dataclass(frozen=True)
class Cause(Generic[Metrics]):
    """One way in which training goes wrong: how it shows, how to say so, and what helps."""

    applies: Callable[[Metrics], bool]
    says: Callable[[Metrics], str]
    advice: Sequence[str]


@dataclass(frozen=True)
class Rule(Generic[Metrics]):
    """A line of a table of verdicts; the first of its causes that applies is named."""

    kind: Kind
    applies: Callable[[Metrics], bool]
    says: Callable[[Metrics], str]
    causes: Sequence[Cause[Metrics]] = ()


def judge(metrics: Metrics, rules: Sequence[Rule[Metrics]]) -> Verdict:
    """The verdict of the first rule that applies; the last one always has to."""
    rule = next(rule for rule in rules if rule.applies(metrics))
    cause = next((cause for cause in rule.causes if cause.applies(metrics)), None)
    if cause is None:
        return Verdict(rule.kind, rule.says(metrics))
    return Verdict(rule.kind, rule.says(metrics), cause.says(metrics), cause.advice)
