"""A run's verdict, derived from its metrics: a word, a sentence, a likely cause and advice.

The rules are in `pretraining_rules.py` and `labelled_rules.py`.
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

# This many consecutive steps without a finite loss are not caused by a single bad batch.
_NO_ACCIDENT = 3


class Verdict(NamedTuple):
    """How well a run does, and by which metrics; `cause` and `advice` may be empty."""

    kind: Kind
    sentence: str
    cause: str = ""
    advice: Sequence[str] = ()

    @property
    def level(self) -> Literal["good", "fair", "bad"]:
        """Whether to let the run continue, consider improving it, or stop and fix it."""
        if self.kind == "learning well":
            return "good"
        return "bad" if self.kind in ("no better than baseline", "diverged") else "fair"


def is_finite(held_out: Curve, training: Curve, skipped_in_a_row: int) -> bool:
    """Whether the newest held-out loss and at least one of the newest steps' losses are finite.

    A single step with a non-finite loss is logged and skipped, and does no harm.
    """
    if held_out.last is not None and not math.isfinite(held_out.last):
        return False
    logged = itertools.takewhile(lambda value: not math.isfinite(value), reversed(training.values))
    return max(skipped_in_a_row, len(list(logged))) < _NO_ACCIDENT


@dataclass(frozen=True)
class Cause(Generic[Metrics]):
    """A cause of bad training: when it applies, its description, and advice."""

    applies: Callable[[Metrics], bool]
    says: Callable[[Metrics], str]
    advice: Sequence[str]


@dataclass(frozen=True)
class Rule(Generic[Metrics]):
    """A rule for a verdict; the first of its causes that applies is reported."""

    kind: Kind
    applies: Callable[[Metrics], bool]
    says: Callable[[Metrics], str]
    causes: Sequence[Cause[Metrics]] = ()


def judge(metrics: Metrics, rules: Sequence[Rule[Metrics]]) -> Verdict:
    """The verdict of the first rule that applies; the last rule must always apply."""
    rule = next(rule for rule in rules if rule.applies(metrics))
    cause = next((cause for cause in rule.causes if cause.applies(metrics)), None)
    if cause is None:
        return Verdict(rule.kind, rule.says(metrics))
    return Verdict(rule.kind, rule.says(metrics), cause.says(metrics), cause.advice)
