"""Rules that judge runs on labels: the held-out metric against a guess, and the training metric."""

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
class LabelledMetrics:
    """The metrics that fine-tuning and transfer are judged by; None if not known.

    Attributes:
        held_out: the metric that the task is judged by (`Quality`), on held-out images.
        held_out_loss: the loss on held-out images.
        training_loss: loss of each logged step, with augmentation and mixing.
        training: the metric on training images without augmentation.
        chance: the metric of a guess that ignores the image.
        direct: the metric on held-out images before any training, in transfer.
        peak_lr: the largest learning rate so far.
        effective_batch: images per step.
        is_over: whether the run has ended for good.
        skipped_in_a_row: number of consecutive skipped steps up to the newest.
        shown: the metric in words; `chance_shown` is what has `chance`, with a verb.
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
    shown: str = "top-1"
    chance_shown: str = "chance is"

    @property
    def skill(self) -> float:
        """The held-out metric rescaled so that 0 is a guess and 1 is the best."""
        chance = self.chance or 0.0
        return ((self.held_out.last or 0.0) - chance) / max(1 - chance, 1e-9)

    @property
    def gap(self) -> float:
        """The metric on training images minus that on held-out ones; 0 if not known."""
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


def compare(run: LabelledMetrics) -> str:
    """A sentence that compares the held-out metric with the other values of it that are known."""
    known = [
        f"{what} {value:.1%}"
        for what, value in (
            (run.chance_shown, run.chance),
            ("on training images it is", run.training),
            ("before training at this size it was", run.direct),
        )
        if value is not None
    ]
    end = f"; {', '.join(known)}" if known else ""
    return f"Held-out {run.shown} is {run.held_out.last:.1%}{end}."


STEEP = Cause[LabelledMetrics](
    lambda run: (run.peak_lr or 0.0) >= _STEEP,
    lambda run: f"the learning rate is too high: it reached {run.peak_lr:.2g}",
    ("Divide optim.lr by 10 to 100.", "With few labels, optim.layer_decay=0.8 keeps early layers."),
)
SMALL_BATCH = Cause[LabelledMetrics](
    lambda run: run.effective_batch is not None and run.effective_batch <= _SMALL_BATCH,
    lambda run: (
        f"the batch is too small: {run.effective_batch} images a step give a noisy gradient"
    ),
    ("Use a larger data.batch_size, or trainer.accumulate_grad_batches.",),
)
OVERFLOW = Cause[LabelledMetrics](
    lambda run: True,
    lambda run: "some value overflowed: the precision is too low, or an input is not finite",
    ("Use trainer.precision=32-true once.", "Lower optim.lr."),
)
FORGOT = Cause[LabelledMetrics](
    lambda run: True,
    lambda run: "training at this size undoes what the classifier knew",
    ("Lower optim.lr.", "Use weaker augmentation and mixing.", "Use the direct classifier."),
)
NO_LABELS_LEARNED = Cause[LabelledMetrics](
    lambda run: run.gap > _GAP,
    lambda run: (
        "what holds for training images does not hold for others: they differ, or are too few"
    ),
    ("See that held-out images are of the same kind and classes.", "Use more labelled images."),
)
UNKNOWN = Cause[LabelledMetrics](
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
BY_HEART = Cause[LabelledMetrics](
    lambda run: True,
    lambda run: (
        f"training images are learned by heart: their {run.shown} is {run.gap:.0%} above that of "
        "held-out ones"
    ),
    (
        "Use more labelled images, or stronger augmentation and mixing.",
        "Raise model.drop_path_rate or optim.weight_decay, or train for fewer epochs.",
        "checkpoints/best.ckpt has the best validation.",
    ),
)

RULES: Sequence[Rule[LabelledMetrics]] = (
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


def judge_labelled(metrics: LabelledMetrics) -> Verdict:
    """The verdict of a run of fine-tuning or transfer."""
    return judge(metrics, RULES)


def labelled_metrics(record: RunRecord) -> LabelledMetrics:
    """Extracts the metrics from a run's record."""
    quality = record.quality
    direct = record.facts.get("untrained", {}).get(f"direct/{quality.metric}")
    return LabelledMetrics(
        held_out=record.curve(f"val/{quality.metric}"),
        held_out_loss=record.curve("val/loss"),
        training_loss=record.curve("train/loss"),
        training=record.last(f"train/{quality.metric}"),
        chance=quality.baseline,
        direct=record.summary.get("metrics", {}).get(f"direct/{quality.metric}")
        if direct is None
        else direct,
        peak_lr=max(record.curve("train/lr").values, default=None),
        effective_batch=record.facts.get("effective_batch") or record.option("data.batch_size"),
        is_over=record.is_over,
        skipped_in_a_row=record.skipped_in_a_row,
        shown=quality.shown,
        chance_shown=quality.baseline_shown,
    )
