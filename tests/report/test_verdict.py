"""Verdicts: those of runs that were made to fail name what made them."""

import math
from dataclasses import replace

import pytest

from simmim.report.labelled_rules import LabelledMetrics, judge_labelled
from simmim.report.pretraining_rules import PretrainingMetrics, judge_pretraining
from simmim.report.run_record import Curve

# What came of `swinv2_nano` on drawn pictures, 320 steps, validated every 64.
VALIDATED = [64, 128, 192, 256, 320]
GOOD = PretrainingMetrics(
    held_out=Curve(VALIDATED, [0.538, 0.513, 0.485, 0.470, 0.467]),
    training=Curve([10, 100, 200, 320], [0.69, 0.52, 0.47, 0.45]),
    visible_mean=0.603,
    nearest_visible=0.338,
    peak_lr=5e-3,
    effective_batch=32,
    hidden_share=39 / 64,
    total_steps=320,
)
QUICKSTART = replace(GOOD, held_out=Curve([256, 1536], [0.46, 0.357]), total_steps=1536)
LEARNING_RATE_TIMES_100 = replace(
    GOOD, held_out=Curve(VALIDATED, [0.754, 0.602, 0.566, 0.540, 0.526]), peak_lr=0.5
)
BLACK = replace(GOOD, held_out=Curve([3, 18], [1.89, 0.32]), visible_mean=7e-8, nearest_visible=0.0)
# 143 of 144 patches; the model beats both baselines by guessing the average picture.
HIDDEN_99 = replace(
    GOOD, held_out=Curve([50, 200], [0.70, 0.667]), visible_mean=0.710, nearest_visible=0.731
)
HIDDEN_99 = replace(HIDDEN_99, hidden_share=143 / 144)
ONE_IMAGE = replace(
    GOOD, held_out=Curve(VALIDATED, [0.661, 0.650, 0.600, 0.588, 0.577]), effective_batch=1
)
TWO_IMAGES = replace(
    GOOD, held_out=Curve(VALIDATED, [0.640, 0.612, 0.586, 0.560, 0.555]), effective_batch=2
)


@pytest.mark.parametrize(
    ("figures", "kind", "cause"),
    [
        (QUICKSTART, "learning", "copying the nearest visible pixel comes closer still"),
        (GOOD, "learning slowly", "few steps: 320"),
        (
            LEARNING_RATE_TIMES_100,
            "learning slowly",
            "the learning rate is too high: it reached 0.5",
        ),
        (BLACK, "no better than baseline", "the images are blank"),
        (HIDDEN_99, "no better than baseline", "too much is hidden, 99.3%"),
        (
            ONE_IMAGE,
            "learning slowly",
            "the batch is too small: a gradient from 1 image is",
        ),
        (TWO_IMAGES, "learning slowly", "the batch is too small: a gradient from 2 images is"),
    ],
)
def test_real_runs_are_called_what_they_are(figures, kind, cause):
    verdict = judge_pretraining(figures)
    assert verdict.kind == kind
    assert verdict.cause.startswith(cause)
    assert bool(verdict.advice) == bool(verdict.cause)


def held_out(*values: float) -> Curve:
    return Curve([100 * (at + 1) for at in range(len(values))], list(values))


@pytest.mark.parametrize(
    ("changes", "kind", "cause"),
    [
        ({"held_out": held_out()}, "too early to tell", ""),
        ({"held_out": held_out(0.5, math.nan)}, "diverged", "some value overflowed"),
        (
            {"held_out": held_out(0.5, math.nan), "peak_lr": 0.1},
            "diverged",
            "the learning rate is too high",
        ),
        (
            {"held_out": held_out(0.5, 9.0), "peak_lr": 0.1},
            "no better than baseline",
            "the learning rate is too high",
        ),
        (
            {
                "held_out": held_out(0.5, 2.0),
                "training": Curve(list(range(1, 21)), [0.6] * 16 + [2.0] * 4),
            },
            "diverged",
            "the training loss fell and rose again, to 3.3 times",
        ),
        ({"held_out": held_out(0.62), "is_over": False}, "not learning yet", "it is early"),
        ({"held_out": held_out(*[0.61] * 10)}, "no better than baseline", "the learning rate does"),
        ({"held_out": held_out(*[0.5] * 10)}, "learning", "copying the nearest visible pixel"),
        ({"held_out": held_out(*[0.5] * 3)}, "learning slowly", "few steps"),
        ({"held_out": held_out(0.56), "is_over": False}, "learning", ""),
        ({"held_out": held_out(0.3)}, "learning well", ""),
        ({"held_out": held_out(*[0.338] * 10)}, "learning", "copying the nearest visible pixel"),
        (
            {"held_out": held_out(*[0.3] * 10), "nearest_visible": None},
            "learning",
            "how well copying",
        ),
        # A step that was skipped is logged too.
        ({"held_out": held_out(0.3), "training": held_out(0.4, math.nan)}, "learning well", ""),
        (
            {"held_out": held_out(0.3), "training": held_out(0.4, *[math.nan] * 3)},
            "diverged",
            "some value overflowed",
        ),
        ({"held_out": held_out(0.3), "skipped_in_a_row": 3}, "diverged", "some value overflowed"),
    ],
)
def test_other_runs(changes, kind, cause):
    # The last logged training step is none that a longer run would have.
    figures = replace(GOOD, training=Curve([10], [0.69]), total_steps=5000)
    verdict = judge_pretraining(replace(figures, **changes))
    assert verdict.kind == kind
    assert verdict.cause.startswith(cause)


@pytest.mark.parametrize("is_over", [True, False])
def test_nothing_is_learned_well_that_does_not_beat_both_baselines(is_over):
    for mean in (0.1, 0.5, 1.0):
        for nearest in (None, 0.1, 0.5, 1.0):
            for loss in (0.05, 0.1, 0.2, 0.45, 0.5, 0.7, 1.2):
                figures = replace(
                    GOOD,
                    held_out=held_out(loss),
                    visible_mean=mean,
                    nearest_visible=nearest,
                    is_over=is_over,
                )
                is_better = nearest is not None and loss < min(mean, nearest)
                if not is_better:
                    assert judge_pretraining(figures).kind != "learning well"


def test_the_sentence_compares_with_both_baselines():
    sentence = judge_pretraining(GOOD).sentence
    assert "23% below predicting each image's visible mean (0.603)" in sentence
    assert "38% above copying the nearest visible pixel (0.338)" in sentence


@pytest.mark.parametrize(
    ("figures", "kind", "cause"),
    [
        ({"training": 0.6, "held_out": held_out(0.3, 0.45)}, "learning well", ""),
        ({"held_out": held_out()}, "too early to tell", ""),
        ({"held_out": held_out(0.09)}, "no better than baseline", "few steps"),
        ({"held_out": held_out(0.09), "is_over": False}, "not learning yet", "few steps"),
        (
            {"held_out": held_out(0.09), "peak_lr": 0.1},
            "no better than baseline",
            "the learning rate",
        ),
        (
            {"held_out": held_out(0.09), "training": 0.9},
            "no better than baseline",
            "what holds for training images does not hold for others",
        ),
        ({"held_out": held_out(0.8), "direct": 0.8}, "learning", ""),
        ({"held_out": held_out(0.6), "direct": 0.8, "is_over": False}, "learning", ""),
        ({"held_out": held_out(0.3), "direct": 0.4}, "no better than baseline", "training at this"),
        (
            {"held_out": held_out(0.5), "training": 0.99},
            "overfitting",
            "training images are learned",
        ),
        (
            {
                "held_out": held_out(0.5, 0.5),
                "training": 0.7,
                "held_out_loss": held_out(1.0, 1.3),
            },
            "overfitting",
            "training images are learned by heart: their top-1 is 20% above that of held-out ones",
        ),
        ({"held_out": held_out(0.12)}, "learning slowly", "few steps"),
        (
            {"held_out": held_out(0.5), "held_out_loss": held_out(math.inf)},
            "diverged",
            "some value overflowed",
        ),
        ({"held_out": held_out(0.5), "training_loss": held_out(2, math.inf)}, "learning well", ""),
        ({"held_out": held_out(0.5), "skipped_in_a_row": 3}, "diverged", "some value overflowed"),
    ],
)
def test_training_with_labels(figures, kind, cause):
    verdict = judge_labelled(LabelledMetrics(chance=1 / 12, **figures))
    assert verdict.kind == kind
    assert verdict.cause.startswith(cause)
