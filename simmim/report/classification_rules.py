"""Rules that judge classification runs, from held-out accuracy against chance and training accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass

from simmim.report.run_record import NOTHING, Curve, RunRecord
from simmim.report.verdict import Cause, Rule, Verdict, is_finite, judge

# Skill, from 0 (chance) to 1 (all correct): no better than baseline below, learning well above.
_NO_BETTER = 0.02
_WELL = 0.1
# At this learning rate, AdamW changes trained weights by a large part of their size in each step.
_STEEP = 0.01
# Overfitting: training accuracy is at least this high with a large gap to held-out accuracy, or
# there is a gap and the held-out loss has risen above its minimum by this factor.
_LEARNED_BY_HEART = 0.9
_LARGE_GAP = 0.2
_GAP = 0.1
_RISEN = 1.1
_LOST = 0.02
_SMALL_BATCH = 8


@dataclass(frozen=True)
class ClassificationMetrics:
    """The metrics that fine-tuning and transfer are judged by; None if not known.

    Attributes:
        held_out: top-1 on held-out images.
        held_out_loss: cross-entropy on held-out images.
        training_loss: loss of each logged step, with augmentation and mixing.
        training: top-1 on training images without augmentation.
        chance: top-1 of guessing.
        direct: held-out top-1 before any training, in transfer.
        peak_lr: the largest learning rate so far.
        effective_batch: images per step.
        is_over: whether the run has ended for good.
        skipped_in_a_row: number of consecutive skipped steps up to the newest.
    """

    held_out: Curve
    held_out_loss: Curve = NOTHING
    training_loss: Curve = NOTHING
    training: float | None = None
    chance: float | None = None
    direct: float | None = None
    peak_lr: float | None = None
    effective_batch: int | None = None
    is_over: bool = True
    skipped_in_a_row: int = 0

    @property
    def skill(self) -> float:
        """Held-out top-1 rescaled so that 0 is chance and 1 is all correct."""
        chance = self.chance or 0.0
        return ((self.held_out.last or 0.0) - chance) / max(1 - chance, 1e-9)

    @property
    def gap(self) -> float:
        """Top-1 on training images minus that on held-out ones; 0 if not known."""
        return 0.0 if self.training is None else self.training - (self.held_out.last or 0.0)

    @property
    def is_overfitting(self) -> bool:
        """Whether what is learned on training images no longer generalises to held-out ones."""
        losses = self.held_out_loss.values
        has_risen = bool(losses) and losses[-1] > _RISEN * min(losses)
        by_heart = (self.training or 0.0) >= _LEARNED_BY_HEART and self.gap >= _LARGE_GAP
        return by_heart or (self.gap >= _GAP and has_risen)

    @property
    def is_finite(self) -> bool:
        """Whether the losses are still finite."""
        return is_finite(self.held_out_loss, self.training_loss, self.skipped_in_a_row)


def compare(run: ClassificationMetrics) -> str:
    """A sentence that compares the held-out accuracy with the known reference accuracies."""
    known = [
        f"{what} {value:.1%}"
        for what, value in (
            ("chance is", run.chance),
            ("on training images it is", run.training),
            ("before training at this size it was", run.direct),
        )
        if value is not None
    ]
    end = f"; {', '.join(known)}" if known else ""
    return f"Held-out top-1 is {run.held_out.last:.1%}{end}."


STEEP = Cause[ClassificationMetrics](
    lambda run: (run.peak_lr or 0.0) >= _STEEP,
    lambda run: f"the learning rate is too high: it reached {run.peak_lr:.2g}",
    ("Divide optim.lr by 10 to 100.", "With few labels, optim.layer_decay=0.8 keeps early layers."),
)
SMALL_BATCH = Cause[ClassificationMetrics](
    lambda run: run.effective_batch is not None and run.effective_batch <= _SMALL_BATCH,
    lambda run: (
        f"the batch is too small: {run.effective_batch} images a step give a noisy gradient"
    ),
    ("Use a larger data.batch_size, or trainer.accumulate_grad_batches.",),
)
OVERFLOW = Cause[ClassificationMetrics](
    lambda run: True,
    lambda run: "some value overflowed: the precision is too low, or an input is not finite",
    ("Use trainer.precision=32-true once.", "Lower optim.lr."),
)
FORGOT = Cause[ClassificationMetrics](
    lambda run: True,
    lambda run: "training at this size undoes what the classifier knew",
    ("Lower optim.lr.", "Use weaker augmentation and mixing.", "Use the direct classifier."),
)
NO_LABELS_LEARNED = Cause[ClassificationMetrics](
    lambda run: run.gap > _GAP,
    lambda run: "training images are told right and others are not: they differ, or are too few",
    ("See that held-out images are of the same kind and classes.", "Use more labelled images."),
)
UNKNOWN = Cause[ClassificationMetrics](
    lambda run: True,
    lambda run: (
        "few steps, a learning rate that does not suit, or labels that do not fit the images"
    ),
    (
        "See that each folder holds images of its class.",
        "Start from a pretrained encoder (init.checkpoint), and train for more epochs.",
        "Try optim.lr three times as high, and a third of it.",
    ),
)
BY_HEART = Cause[ClassificationMetrics](
    lambda run: True,
    lambda run: (
        f"training images are learned by heart: they are told right {run.gap:.0%} more often than "
        "held-out ones"
    ),
    (
        "Use more labelled images, or stronger augmentation and mixing.",
        "Raise model.drop_path_rate or optim.weight_decay, or train for fewer epochs.",
        "checkpoints/best.ckpt has the best validation.",
    ),
)

RULES: Sequence[Rule[ClassificationMetrics]] = (
    Rule(
        "diverged",
        lambda run: not run.is_finite,
        lambda run: "The loss is no longer a finite number.",
        (STEEP, OVERFLOW),
    ),
    Rule(
        "too early to tell",
        lambda run: run.held_out.last is None,
        lambda run: "There is no validation metric yet; the first validation brings it.",
    ),
    Rule(
        "not learning yet",
        lambda run: run.skill < _NO_BETTER and not run.is_over,
        compare,
        (STEEP, SMALL_BATCH, UNKNOWN),
    ),
    Rule(
        "no better than baseline",
        lambda run: run.skill < _NO_BETTER,
        compare,
        (STEEP, SMALL_BATCH, NO_LABELS_LEARNED, UNKNOWN),
    ),
    Rule(
        "no better than baseline",
        lambda run: run.is_over and (run.held_out.last or 0.0) < (run.direct or 0.0) - _LOST,
        compare,
        (STEEP, FORGOT),
    ),
    Rule("overfitting", lambda run: run.is_overfitting, compare, (BY_HEART,)),
    # A run must beat both chance and its initial weights to get a better verdict than this.
    Rule(
        "learning",
        lambda run: run.skill >= _WELL and (run.held_out.last or 0.0) <= (run.direct or 0.0),
        lambda run: f"{compare(run)} That is not yet more than before training at this size.",
    ),
    Rule("learning well", lambda run: run.skill >= _WELL, compare),
    Rule("learning slowly", lambda run: True, compare, (STEEP, SMALL_BATCH, UNKNOWN)),
)


def judge_classification(metrics: ClassificationMetrics) -> Verdict:
    """The verdict of a run of fine-tuning or transfer."""
    return judge(metrics, RULES)


def classification_metrics(record: RunRecord) -> ClassificationMetrics:
    """Extracts the metrics from a run's record."""
    classes = record.facts.get("classes")
    direct = record.facts.get("untrained", {}).get("direct/top1")
    return ClassificationMetrics(
        held_out=record.curve("val/top1"),
        held_out_loss=record.curve("val/loss"),
        training_loss=record.curve("train/loss"),
        training=record.last("train/top1"),
        chance=1 / classes if classes else None,
        direct=record.summary.get("metrics", {}).get("direct/top1") if direct is None else direct,
        peak_lr=max(record.curve("train/lr").values, default=None),
        effective_batch=record.facts.get("effective_batch") or record.option("data.batch_size"),
        is_over=record.is_over,
        skipped_in_a_row=record.skipped_in_a_row,
    )
