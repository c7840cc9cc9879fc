"""The evaluation stage: a model by its own head, or a frozen encoder by k-NN or linear probe."""

import csv
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig

from simmim.checkpoints.load import Initialisation
from simmim.checkpoints.model_init import ModelInit
from simmim.data.dataset import ImageSource
from simmim.data.sources.image_folder import ImageFolder
from simmim.data.transforms import CenterCrop
from simmim.evaluate.features import Features, extract_features
from simmim.evaluate.knn import NeighbourVote
from simmim.evaluate.linear_probe import RegressionRecipe
from simmim.models.swin import SwinTransformer
from simmim.tasks.classification.confusion import rank_predictions
from simmim.tasks.classification.evaluation import tabulate
from simmim.tasks.classification.labels import label_classes
from simmim.tasks.evaluation import require_some
from simmim.tasks.task import Evaluation, Outputs, find_task
from simmim.training.callbacks import EvaluationProgress, report_progress
from simmim.training.open_data import open_data
from simmim.training.options import SHARES_TRAINING
from simmim.training.run_dir.summary import write_summary
from simmim.utils.console import say
from simmim.utils.devices import peak_memory_bytes
from simmim.utils.errors import UserError
from simmim.utils.failure_messages import explained_workers
from simmim.utils.sizes import show

EvaluationMode = Literal["classify", "knn", "linear"]


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
    """Measures what the model's task is judged by, or the encoder's features; returns the summary.

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
            found = evaluate_model(start, judge, data, outputs, seed)
        else:
            recipe = vote if mode == "knn" else regression
            found = evaluate_encoder(start, judge, data, recipe, mode, seed)
    if not judge.is_global_zero:
        return {}

    summary = {
        "stage": "evaluate",
        "mode": mode,
        "checkpoint": str(Path(checkpoint).absolute()),
        "metrics": found.metrics,
        "images": found.images,
        "unreadable_images": found.unreadable,
        "image_size": list(start.planned.image_size),
        **found.details,
    }
    write_tables(found.tables, Path(run_dir))
    say(found.shown)
    for line in found.lines:
        say(f"  {line}")
    if found.unreadable:
        say(f"{found.unreadable} images could not be read and do not count")
    summary["seconds"] = time.monotonic() - started
    summary["peak_memory_bytes"] = peak_memory_bytes(judge.strategy.root_device)
    say(f"finished in {summary['seconds']:.0f} s: {run_dir}")
    return write_summary(Path(run_dir, "summary.json"), summary)


def evaluate_model(
    start: ModelInit, trainer: pl.Trainer, data: DictConfig, outputs: Outputs, seed: int
) -> Evaluation:
    """Evaluates a model by its own head on held-out images, as its task does."""
    assert start.weights is not None
    if start.weights.num_classes is None:
        raise UserError(
            f"{start.source} holds an encoder without classes; judge it with mode=knn or mode=linear, "
            f"or fine-tune it with python -m simmim.finetune init.checkpoint={start.source}"
        )
    images = open_data(data, start.planned, None, seed, trainer.default_root_dir)
    images.keep_labelled()
    announce(trainer, images.val, start.planned)
    return find_task(start.weights).evaluate(start, images, trainer, outputs)


def evaluate_encoder(
    start: ModelInit,
    trainer: pl.Trainer,
    data: DictConfig,
    recipe: NeighbourVote | RegressionRecipe,
    mode: EvaluationMode,
    seed: int,
) -> Evaluation:
    """Evaluates an encoder's features by k-NN or linear probe (`recipe`), on one device."""
    if trainer.world_size > 1:
        raise UserError(
            f"mode={mode} runs on one device and the trainer has {trainer.world_size}; "
            "use trainer.devices=1 trainer.num_nodes=1"
        )
    images = open_data(
        data, start.planned, CenterCrop(start.planned.image_size), seed, trainer.default_root_dir
    )
    label_classes(images)
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
    require_some(len(answers.labels), len(images.val))
    right = answers.predicted == answers.labels
    top1, top5 = float(right.double().mean()), float(answers.in_top5.double().mean())
    tables, lines = tabulate(answers, classes, range(count))
    return Evaluation(
        images=len(answers.labels),
        unreadable=len(images.val) - len(answers.labels),
        metrics={"val/top1": top1, "val/top5": top5},
        details={"classes": count, **details},
        tables=tables,
        shown=f"top-1 {top1:.1%}, top-5 {top5:.1%}, worst classes:",
        lines=lines,
    )


def announce(trainer: pl.Trainer, images: ImageSource, encoder: SwinTransformer) -> None:
    """Logs the images, image size and devices of the evaluation."""
    where = f" in {images.root}" if isinstance(images, ImageFolder) else ""
    kind = type(trainer.accelerator).__name__.removesuffix("Accelerator")
    classes = f" of {len(images.classes)} classes" if images.classes else ""
    say(
        f"{len(images)} images{classes}{where} at "
        f"{show(encoder.image_size)}, {trainer.world_size} × {kind}, {trainer.precision}"
    )


def write_tables(tables: Mapping[str, Iterable[Sequence[Any]]], folder: Path) -> None:
    """Writes rows to CSV files of these names."""
    for name, rows in tables.items():
        with (folder / name).open("w", newline="", errors="backslashreplace") as file:
            csv.writer(file).writerows(rows)
