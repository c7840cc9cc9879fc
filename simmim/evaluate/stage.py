"""The evaluation stage: a classifier, or a frozen encoder by k-NN or linear probe."""

import csv
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig

from simmim.checkpoints.class_names import imagenet_synsets
from simmim.checkpoints.load import Initialisation
from simmim.checkpoints.model_init import ModelInit
from simmim.data.dataset import ImageSource
from simmim.data.labels import require_labels
from simmim.data.sources.image_folder import ImageFolder
from simmim.data.transforms import CenterCrop
from simmim.evaluate.confusion import Predictions, by_class, count_confusion, rank_predictions
from simmim.evaluate.features import Features, extract_features
from simmim.evaluate.knn import NeighbourVote
from simmim.evaluate.linear_probe import RegressionRecipe
from simmim.evaluate.task import EvaluationTask
from simmim.models.swin import SwinTransformer
from simmim.training.callbacks import EvaluationProgress, report_progress
from simmim.training.fit import validation_metrics
from simmim.training.open_data import open_data
from simmim.training.options import SHARES_TRAINING
from simmim.training.run_dir.summary import write_summary
from simmim.utils.console import say
from simmim.utils.devices import peak_memory_bytes
from simmim.utils.errors import UserError
from simmim.utils.failure_messages import explained_workers
from simmim.utils.sizes import show

EvaluationMode = Literal["classify", "knn", "linear"]
Outputs = Literal["all", "present"]

_WORST_CLASSES = 5


class EvalResult(NamedTuple):
    """The result of an evaluation: a prediction per image, the names of the labels, metrics.

    Attributes:
        judged: labels of the data's classes, each of which is a row of the tables.
        images: number of images, including those that could not be read.
        details: further entries of the summary.
    """

    answers: Predictions
    names: Sequence[str]
    judged: Sequence[int]
    images: int
    metrics: dict[str, float]
    details: dict[str, Any]


def evaluate(
    *,
    model: DictConfig,
    checkpoint: str | None,
    mode: EvaluationMode,
    outputs: Outputs,
    data: DictConfig,
    trainer: DictConfig,
    knn: DictConfig,
    linear: DictConfig,
    seed: int,
    run_dir: str,
) -> dict[str, Any]:
    """Measures top-1, top-5 and the confusion of classes; returns the summary.

    Raises:
        UserError: no checkpoint, or a model, data and mode that are incompatible.
    """
    started = time.monotonic()
    if checkpoint is None:
        raise UserError(
            "there is nothing to evaluate; set checkpoint= to a run, its classifier.safetensors or "
            "encoder.safetensors, or the weights of another program"
        )
    if Path(run_dir, "checkpoints").exists():
        raise UserError(
            f"run_dir={run_dir} holds a run, whose summary.json would be written over; leave run_dir "
            "out, or give another one"
        )
    if trainer.strategy in SHARES_TRAINING:
        raise UserError(
            f"trainer.strategy={trainer.strategy} shares out what training needs; evaluate with "
            "trainer=auto or trainer=ddp"
        )
    vote, regression = instantiate(knn), instantiate(linear)
    start = ModelInit(model, Initialisation(checkpoint))
    data = start.crop_as_validated(data)
    judge: pl.Trainer = instantiate(
        trainer, clip_norm=None, run_dir=run_dir, loggers=[], callbacks=[EvaluationProgress()]
    )
    with explained_workers():
        if mode == "classify":
            judgement = judge_classifier(start, judge, data, outputs, seed)
        else:
            recipe = vote if mode == "knn" else regression
            judgement = judge_encoder(start, judge, data, recipe, mode, seed)
    if not judge.is_global_zero:
        return {}

    summary = {
        "stage": "evaluate",
        "mode": mode,
        "checkpoint": str(Path(checkpoint).absolute()),
        "metrics": judgement.metrics,
        "classes": len(judgement.judged),
        "images": len(judgement.answers.labels),
        "unreadable_images": judgement.images - len(judgement.answers.labels),
        "image_size": list(start.planned.image_size),
        **judgement.details,
    }
    worst = write_tables(judgement, Path(run_dir))
    metrics = judgement.metrics
    say(f"top-1 {metrics['val/top1']:.1%}, top-5 {metrics['val/top5']:.1%}, worst classes:")
    for line in worst:
        say(f"  {line}")
    if unreadable := summary["unreadable_images"]:
        say(f"{unreadable} images could not be read and do not count")
    summary["seconds"] = time.monotonic() - started
    summary["peak_memory_bytes"] = peak_memory_bytes(judge.strategy.root_device)
    say(f"finished in {summary['seconds']:.0f} s: {run_dir}")
    return write_summary(Path(run_dir, "summary.json"), summary)


def judge_classifier(
    start: ModelInit, trainer: pl.Trainer, data: DictConfig, outputs: Outputs, seed: int
) -> EvalResult:
    """Evaluates a classifier on held-out images, on any number of devices."""
    assert start.weights is not None
    head_size = start.weights.num_classes
    if head_size is None:
        raise UserError(
            f"{start.source} holds an encoder without classes; judge it with mode=knn or mode=linear, "
            f"or fine-tune it with python -m simmim.finetune init.checkpoint={start.source}"
        )
    images = open_data(data, start.planned, None, seed, trainer.default_root_dir)
    images.keep_labelled()
    classes = images.val.classes
    if not classes:
        raise UserError(
            "the data has no classes to compare answers with; put the images into one folder a "
            "class, below data.root or data.root/val"
        )
    require_labels(images.val, "held-out")
    rows = start.find_head(classes)
    names: Sequence[str] = output_names(classes, rows, head_size, start.weights.classes)
    kept = list(range(head_size))
    if outputs == "present":
        if len(classes) < 2:
            raise UserError("outputs=present leaves one class to choose from; use outputs=all")
        names, kept, rows = [names[row] for row in rows], rows, list(range(len(rows)))
    elif len(classes) < head_size:
        say(
            f"the data has {len(classes)} of the classifier's {head_size} classes, which all compete; "
            "outputs=present leaves the others out"
        )
    task = EvaluationTask(
        start.create_classifier(kept),
        rows=rows,
        outputs=len(kept),
        normalisation=start.find_normalisation(images.normalisation),
    )
    announce(trainer, images.val, start.planned)
    trainer.validate(task, datamodule=images, verbose=False)
    assert task.answers is not None
    require_predictions(task.answers, images.val)
    metrics = validation_metrics(trainer)
    if not math.isfinite(metrics["val/loss"]):
        raise UserError(
            f"outputs of {start.source} are not finite: the model had diverged; use another"
        )
    return EvalResult(
        task.answers,
        names,
        judged=rows,
        images=len(images.val),
        metrics=metrics,
        details={"outputs": len(kept)},
    )


def judge_encoder(
    start: ModelInit,
    trainer: pl.Trainer,
    data: DictConfig,
    recipe: NeighbourVote | RegressionRecipe,
    mode: EvaluationMode,
    seed: int,
) -> EvalResult:
    """Evaluates an encoder's features by k-NN or linear probe (`recipe`), on one device."""
    if trainer.world_size > 1:
        raise UserError(
            f"mode={mode} runs on one device and the trainer has {trainer.world_size}; "
            "use trainer.devices=1 trainer.num_nodes=1"
        )
    images = open_data(
        data, start.planned, CenterCrop(start.planned.image_size), seed, trainer.default_root_dir
    )
    images.keep_labelled()
    classes = images.require_classes()
    source = images.require_random_access()
    if isinstance(recipe, NeighbourVote):
        recipe.require_neighbours(len(images.train))
    normalisation = start.find_normalisation(images.normalisation)
    device = trainer.strategy.root_device
    encoder = start.create_encoder().eval().to(device)
    announce(trainer, images.val, start.planned)

    def see(source: ImageSource, what: str) -> Features:
        batches = report_progress(images.evaluation_dataloader(source), what)
        with trainer.precision_plugin.forward_context():
            return extract_features(encoder, batches, normalisation, device).counted()

    train, val = see(source, "training images"), see(images.val, "held-out images")
    if not train.values.isfinite().all() or not val.values.isfinite().all():
        raise UserError(
            f"features of {start.source} are not finite: the model had diverged; use another"
        )
    details: dict[str, Any] = {"training_images": len(train.labels)}
    count = len(classes)
    if isinstance(recipe, NeighbourVote):
        ranked = recipe.rank_classes(val.values, train.values, train.labels, num_classes=count)
        details |= {"k": recipe.k, "temperature": recipe.temperature}
    else:
        fitted = recipe.fit(train.values, train.labels, num_classes=count, seed=seed)
        ranked = fitted.layer.rank_classes(val.values)
        tried = ", ".join(f"{l2:g}: {top1:.1%}" for l2, top1 in fitted.held_out_top1.items())
        if len(fitted.held_out_top1) > 1:
            say(f"L2 {fitted.l2:g}, by top-1 on a part of the training images ({tried})")
        details |= {"l2": fitted.l2}
    answers = rank_predictions(ranked, val.labels)
    require_predictions(answers, images.val)
    right = answers.predicted == answers.labels
    return EvalResult(
        answers,
        classes,
        judged=range(count),
        images=len(images.val),
        metrics={
            "val/top1": float(right.double().mean()),
            "val/top5": float(answers.in_top5.double().mean()),
        },
        details=details,
    )


def output_names(
    classes: Sequence[str], rows: Sequence[int], outputs: int, known: Sequence[str]
) -> list[str]:
    """A name for each output of a head: its own, ImageNet's synset, the data's class, or its number."""
    names = list(known or imagenet_synsets(outputs) or map(str, range(outputs)))
    for name, row in zip(classes, rows, strict=True):
        # A folder named after its output's number is not a better name than the head's own.
        if name != str(row):
            names[row] = name
    return names


def require_predictions(answers: Predictions, images: ImageSource) -> None:
    """Raises UserError if no image could be evaluated."""
    if len(answers.labels) == 0:
        raise UserError(f"none of {len(images)} images could be read; check data.root")


def announce(trainer: pl.Trainer, images: ImageSource, encoder: SwinTransformer) -> None:
    """Logs the images, image size and devices of the evaluation."""
    where = f" in {images.root}" if isinstance(images, ImageFolder) else ""
    kind = type(trainer.accelerator).__name__.removesuffix("Accelerator")
    say(
        f"{len(images)} images of {len(images.classes)} classes{where} at "
        f"{show(encoder.image_size)}, {trainer.world_size} × {kind}, {trainer.precision}"
    )


def write_tables(judgement: EvalResult, folder: Path) -> list[str]:
    """Writes `per_class.csv` and `confusion.csv`; returns a line on each of the worst classes."""
    names = judgement.names
    confusion = count_confusion(judgement.answers, judgement.judged)
    metrics = by_class(judgement.answers, confusion)
    with (folder / "per_class.csv").open("w", newline="", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "images", "correct", "top1", "top5", "most_often_taken_for"])
        for one in metrics:
            mistaken = "" if one.mistaken_for is None else names[one.mistaken_for]
            shares = (
                [one.correct / one.images, one.in_top5 / one.images] if one.images else ["", ""]
            )
            writer.writerow([names[one.label], one.images, one.correct, *shares, mistaken])
    with (folder / "confusion.csv").open("w", newline="", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["class", *(names[column] for column in confusion.columns)])
        for row, counts in zip(confusion.rows, confusion.counts.tolist(), strict=True):
            writer.writerow([names[row], *counts])
    present = [one for one in metrics if one.images]
    worst = sorted(present, key=lambda one: one.correct / one.images)[:_WORST_CLASSES]
    return [
        f"{names[one.label]}: {one.correct} of {one.images}"
        + ("" if one.mistaken_for is None else f", most often taken for {names[one.mistaken_for]}")
        for one in worst
    ]
