"""Rules that judge pretraining runs by two baselines that learn nothing.

The verdict follows from the held-out loss against theirs: predicting each image's visible mean, and
copying the nearest visible pixel. What the constants below decide is which likely cause is named.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from simmim.report.run_record import NOTHING, Curve, RunRecord
from simmim.report.verdict import Cause, Rule, Verdict, is_finite, judge

# AdamW changes each weight by about the learning rate per step, and weights are initialised with a
# standard deviation of 0.02: at this rate, one step overwrites what was learned.
_RATE_OF_INITIAL_WEIGHTS = 0.02
# Pixels are normalised to a spread of about 1: if the mean's error is below this, images are blank.
_BLANK = 0.01
# SimMIM's accuracy holds up to ratios of 0.8 (arXiv 2111.09886, table 1).
_MOST_HIDDEN = 0.9
_SMALL_BATCH = 8
_FEW_STEPS = 500
# A run still in progress is early up to _FEW_STEPS or this share of its steps, whichever is larger.
_EARLY_SHARE = 0.1
# The training loss has risen again if it is this many times its minimum.
_REBOUND = 1.2


@dataclass(frozen=True)
class PretrainingMetrics:
    """The metrics that pretraining is judged by; None if not known.

    Attributes:
        held_out: masked loss on held-out images, always with the same masks.
        training: loss of each logged step.
        visible_mean, nearest_visible: held-out loss of the two baselines.
        peak_lr: the largest learning rate so far.
        effective_batch: images per step.
        hidden_share: the masked share of each image.
        total_steps: the planned number of steps.
        is_over: whether the run has ended for good.
        skipped_in_a_row: number of consecutive skipped steps up to the newest.
    """

    held_out: Curve
    training: Curve = NOTHING
    visible_mean: float | None = None
    nearest_visible: float | None = None
    peak_lr: float | None = None
    effective_batch: int | None = None
    hidden_share: float | None = None
    total_steps: int | None = None
    is_over: bool = True
    skipped_in_a_row: int = 0

    @property
    def steps(self) -> int:
        """The number of steps logged so far."""
        return max([*self.held_out.steps[-1:], *self.training.steps[-1:]], default=0)

    @property
    def ratio(self) -> float:
        """Held-out loss divided by that of the visible mean; nan if not known."""
        if self.held_out.last is None or not self.visible_mean:
            return math.nan
        return self.held_out.last / self.visible_mean

    @property
    def copying_ratio(self) -> float:
        """Held-out loss divided by that of copying the nearest visible pixel; nan if not known."""
        if self.held_out.last is None or not self.nearest_visible:
            return math.nan
        return self.held_out.last / self.nearest_visible

    @property
    def beats_both(self) -> bool:
        """Whether the held-out loss is below both baselines; False if one is not known."""
        return self.ratio < 1 and self.copying_ratio < 1

    @property
    def is_finite(self) -> bool:
        """Whether the losses are still finite."""
        return is_finite(self.held_out, self.training, self.skipped_in_a_row)

    @property
    def is_early(self) -> bool:
        """Whether the run is still in progress and has only begun."""
        if self.is_over:
            return False
        return self.steps < max(_FEW_STEPS, _EARLY_SHARE * (self.total_steps or 0))

    @property
    def is_steep(self) -> bool:
        """Whether the learning rate was so high that each step overwrites the previous one."""
        return self.peak_lr is not None and self.peak_lr >= _RATE_OF_INITIAL_WEIGHTS

    @property
    def rebound(self) -> float:
        """The current training loss divided by its minimum, both as means over tenths of the run."""
        values = [value for value in self.training.values if math.isfinite(value)]
        width = max(1, len(values) // 10)
        means = [
            sum(values[at : at + width]) / width for at in range(0, len(values) - width + 1, width)
        ]
        return means[-1] / min(means) if means and min(means) > 0 else 1.0


def compare(run: PretrainingMetrics) -> str:
    """A sentence that compares the held-out loss with both baselines."""
    parts = [
        f"{_than(ratio)} {what} ({value:.3g})"
        for ratio, value, what in (
            (run.ratio, run.visible_mean, "predicting each image's visible mean"),
            (run.copying_ratio, run.nearest_visible, "copying the nearest visible pixel"),
        )
        if value is not None and math.isfinite(ratio)
    ]
    return f"The held-out masked loss is {run.held_out.last:.3g}: {', '.join(parts)}."


def _than(ratio: float) -> str:
    if abs(ratio - 1) < 0.005:
        return "no different from"
    return f"{abs(1 - ratio):.0%} {'below' if ratio < 1 else 'above'}"


STEEP = Cause[PretrainingMetrics](
    lambda run: run.is_steep,
    lambda run: (
        f"the learning rate is too high: it reached {run.peak_lr:.2g}, and weights begin at a standard "
        "deviation of 0.02, so that each step undoes the ones before"
    ),
    (
        "Divide optim.lr by 10 to 100; the papers' is 1e-4 for a batch of 512, scaled linearly.",
        "Look in the log for the rate that came of optim.lr, optim.lr_batch_size and the batch.",
    ),
)
ROSE = Cause[PretrainingMetrics](
    lambda run: run.rebound > _REBOUND,
    lambda run: (
        f"the training loss fell and rose again, to {run.rebound:.1f} times its lowest: the learning "
        "rate is too high for this model, or the warm-up too short"
    ),
    (
        "Take a third of optim.lr.",
        "Warm up for longer: optim.warmup_epochs.",
        "Clip gradients lower.",
    ),
)
OVERFLOW = Cause[PretrainingMetrics](
    lambda run: True,
    lambda run: "some value overflowed: the precision is too low, or an input is not finite",
    (
        "Use trainer.precision=32-true once, to see whether the precision is the cause.",
        "Look for values in the images that are not finite, and for a standard deviation near 0.",
        "Lower optim.lr.",
    ),
)
BLANK = Cause[PretrainingMetrics](
    lambda run: True,
    lambda run: "the images are blank: each is of one colour, all black perhaps",
    (
        "Open some of the files, and see under Reconstructions what is read of them.",
        "Look for a wrong folder, or masks and labels among the images.",
        "Where values are no uint8: see that data.statistics are those of these files.",
    ),
)
HIDDEN = Cause[PretrainingMetrics](
    lambda run: run.hidden_share is not None and run.hidden_share >= _MOST_HIDDEN,
    lambda run: (
        f"too much is hidden, {run.hidden_share:.1%} of each image: what is left says little of the "
        "rest, and to guess the average image is all that can be learned"
    ),
    ("Use mask.ratio=0.6; up to 0.8 with small patches.", "Use a smaller mask.patch_size."),
)
SMALL_BATCH = Cause[PretrainingMetrics](
    lambda run: run.effective_batch is not None and run.effective_batch <= _SMALL_BATCH,
    lambda run: (
        f"the batch is too small: a gradient from {run.effective_batch} "
        f"image{'' if run.effective_batch == 1 else 's'} is mostly noise"
    ),
    (
        "Use a larger data.batch_size, or trainer.accumulate_grad_batches where memory is short.",
        "Where the batch must stay small: a lower optim.lr and many more steps.",
    ),
)
SHORT = Cause[PretrainingMetrics](
    lambda run: run.steps < _FEW_STEPS,
    lambda run: f"few steps: {run.steps:,} so far",
    ("Train for longer: trainer.max_epochs or trainer.max_steps.",),
)
EARLY = Cause[PretrainingMetrics](
    lambda run: True,
    lambda run: f"it is early: step {run.steps:,} of {run.total_steps or 'many'}",
    ("Wait: the first steps learn little but the mean colour.",),
)
COPYING_IS_BETTER = Cause[PretrainingMetrics](
    lambda run: run.nearest_visible is not None,
    lambda run: (
        "copying the nearest visible pixel comes closer still: hidden parts are filled in, but blurred"
    ),
    (
        "Train for longer: trainer.max_epochs or trainer.max_steps.",
        "Judge by fine-tuning: where mask patches are small, copying is hard to beat.",
    ),
)
COPYING_IS_UNKNOWN = Cause[PretrainingMetrics](
    lambda run: True,
    lambda run: "how well copying the nearest visible pixel does was not logged",
    ("Compare with it: python -m simmim.reconstruct tells both for your pictures.",),
)
UNKNOWN = Cause[PretrainingMetrics](
    lambda run: True,
    lambda run: "the learning rate does not suit, or hidden parts cannot be told from visible ones",
    (
        "Look at the reconstructions: one colour all over means that only the mean was learned.",
        "Try optim.lr three times as high, and a third of it.",
        "Look at what the augmentation makes of the images, and at how large a mask patch is in them.",
    ),
)

RULES: Sequence[Rule[PretrainingMetrics]] = (
    Rule(
        "diverged",
        lambda run: not run.is_finite,
        lambda run: "The loss is no longer a finite number.",
        (STEEP, ROSE, OVERFLOW),
    ),
    Rule(
        "too early to tell",
        lambda run: run.held_out.last is None or run.visible_mean is None,
        lambda run: "There is no validation metric yet; the first validation brings it.",
    ),
    Rule(
        "no better than baseline",
        lambda run: (run.visible_mean or 0) < _BLANK,
        lambda run: (
            "There is nothing to learn: an image's visible mean predicts its hidden pixels to "
            f"{run.visible_mean:.1g}."
        ),
        (BLANK,),
    ),
    Rule(
        "diverged",
        lambda run: run.ratio >= 1 and not run.is_early and ROSE.applies(run),
        compare,
        (STEEP, ROSE),
    ),
    # The mean of the few visible pixels is itself a poor baseline, so beating it means little.
    Rule("no better than baseline", HIDDEN.applies, compare, (HIDDEN,)),
    Rule(
        "not learning yet",
        lambda run: run.ratio >= 1 and run.is_early,
        compare,
        (STEEP, SMALL_BATCH, EARLY),
    ),
    Rule(
        "no better than baseline",
        lambda run: run.ratio >= 1,
        compare,
        (STEEP, SMALL_BATCH, SHORT, UNKNOWN),
    ),
    Rule("learning slowly", lambda run: run.is_steep, compare, (STEEP,)),
    Rule("learning well", lambda run: run.beats_both, compare),
    Rule(
        "learning",
        lambda run: run.is_early,
        lambda run: f"{compare(run)} It is early, and on the right way.",
    ),
    Rule(
        "learning slowly",
        lambda run: any(cause.applies(run) for cause in (SMALL_BATCH, ROSE, SHORT)),
        compare,
        (SMALL_BATCH, ROSE, SHORT),
    ),
    Rule("learning", lambda run: True, compare, (COPYING_IS_BETTER, COPYING_IS_UNKNOWN)),
)


def judge_pretraining(metrics: PretrainingMetrics) -> Verdict:
    """The verdict of a pretraining run."""
    return judge(metrics, RULES)


def pretraining_metrics(record: RunRecord) -> PretrainingMetrics:
    """Extracts the metrics from a run's record."""
    facts = record.facts
    rates = record.curve("train/lr").values
    return PretrainingMetrics(
        held_out=record.curve("val/loss"),
        training=record.curve("train/loss"),
        visible_mean=record.last("val/baseline_visible_mean"),
        nearest_visible=record.last("val/baseline_nearest_visible"),
        peak_lr=max(rates, default=None),
        effective_batch=facts.get("effective_batch") or record.option("data.batch_size"),
        hidden_share=facts.get("hidden_share") or record.option("mask.ratio"),
        total_steps=facts.get("total_steps"),
        is_over=record.is_over,
        skipped_in_a_row=record.skipped_in_a_row,
    )
