"""The training stages, each a story from configuration to run directory, readable top to bottom.

What can be wrong with a configuration is found before data is read, and what can be wrong with the
data before weights are allocated: the encoder is first built on the meta device.
"""

import time
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig
from typing_extensions import Unpack

from simmim.console import say
from simmim.heads import HeadKind
from simmim.losses import LossRegion, check_target_window
from simmim.models import Classifier, Mode, SimMIM
from simmim.planned_run import classifier_of, simmim_with
from simmim.preflight import require_memory
from simmim.runs import (
    RunOptions,
    announce,
    create_data,
    create_run,
    fit,
    training_arguments,
    validate_untrained,
)
from simmim.starting import Start
from simmim.tasks import ClassificationTask, SimMIMTask


def pretrain(
    *,
    model: DictConfig,
    init: DictConfig,
    mask: DictConfig,
    target_window: int | None,
    head: HeadKind,
    loss_region: LossRegion,
    reconstructions: DictConfig,
    knn: DictConfig,
    **options: Unpack[RunOptions],
) -> dict[str, Any]:
    """SimMIM pretraining: mask, reconstruct, and leave an encoder. Returns the summary."""
    started = time.monotonic()
    start = Start(model, instantiate(init))
    if target_window is not None:
        check_target_window(target_window)
    mask_generator = instantiate(
        mask,
        image_size=start.planned.image_size,
        token_size=start.planned.patch_size,
        seed=options["seed"],
    )
    pictures = instantiate(reconstructions, run_dir=options["run_dir"])
    neighbours = instantiate(knn)
    of_stage = {
        **{"model": model, "init": init, "mask": mask, "target_window": target_window},
        **{"head": head, "loss_region": loss_region},
    }
    run = create_run(options, of_stage, [pictures, neighbours], neighbours.figures)
    require_memory(start, run, options, simmim_with(head))
    images = create_data(options, start.planned, run)
    arguments = training_arguments(run, start, images, options["seed"])

    pl.seed_everything(options["seed"], verbose=False)
    task = SimMIMTask(
        SimMIM(start.create_encoder(), head),
        mask_generator=mask_generator,
        target_window=target_window,
        loss_region=loss_region,
        **arguments,
    )
    announce(run, task.model, images)
    summary = fit(run, task, images, stage="pretrain", started=started)
    if summary:
        metrics = summary["metrics"]
        # Where it is not finite, that has been told.
        if metrics["val/loss"] is not None and metrics["val/loss_over_baseline"] is not None:
            say(
                f"held-out masked L1 {metrics['val/loss']:.4f}, "
                f"{metrics['val/loss_over_baseline']:.2f} of predicting each image's visible mean "
                f"({metrics['val/baseline_visible_mean']:.4f})"
            )
        say(f"finished in {summary['seconds']:.0f} s: {run.run_dir}")
    return summary


def finetune(
    *,
    model: DictConfig,
    init: DictConfig,
    mixing: DictConfig,
    mode: Mode,
    ema: DictConfig,
    **options: Unpack[RunOptions],
) -> dict[str, Any]:
    """Supervised training of an encoder with a new linear head. Returns the summary."""
    started = time.monotonic()
    start = Start(model, instantiate(init))
    average = instantiate(ema)
    of_stage = {"model": model, "init": init, "mixing": mixing, "mode": mode, "ema": ema}
    run = create_run(options, of_stage, average)
    images = create_data(options, start.planned, run)
    images.keep_labelled()
    classes = images.require_classes()
    create_model = classifier_of(len(classes), is_frozen=mode == "linear")
    require_memory(start, run, options, create_model, has_average=bool(average))
    arguments = training_arguments(run, start, images, options["seed"])

    pl.seed_everything(options["seed"], verbose=False)
    task = ClassificationTask(
        Classifier(start.create_encoder(), len(classes)),
        classes=classes,
        mode=mode,
        mixup=instantiate(mixing, num_classes=len(classes), batch_size=images.batch_size),
        label_smoothing=mixing.label_smoothing,
        held_out_crop=images.held_out_crop(),
        **arguments,
    )
    announce(run, task.model, images)
    summary = fit(run, task, images, stage="finetune", started=started)
    if summary:
        metrics = summary["metrics"]
        say(f"held-out top-1 {metrics['val/top1']:.1%}, top-5 {metrics['val/top5']:.1%}")
        say(f"finished in {summary['seconds']:.0f} s: {run.run_dir}")
    return summary


def transfer(
    *,
    model: DictConfig,
    init: DictConfig,
    mixing: DictConfig,
    ema: DictConfig,
    **options: Unpack[RunOptions],
) -> dict[str, Any]:
    """A classifier at another image and window size, its head carried over. Returns the summary.

    It is validated before any training at the new size ("direct"; Swin V2, table 1) and after.
    """
    started = time.monotonic()
    start = Start(model, instantiate(init))
    average = instantiate(ema)
    of_stage = {"model": model, "init": init, "mixing": mixing, "ema": ema}
    run = create_run(options, of_stage, average)
    options["data"] = start.crop_as_validated(options["data"])
    images = create_data(options, start.planned, run)
    images.keep_labelled()
    classes = images.require_classes()
    rows = start.find_head(classes)
    require_memory(start, run, options, classifier_of(len(rows)), has_average=bool(average))
    arguments = training_arguments(run, start, images, options["seed"])

    pl.seed_everything(options["seed"], verbose=False)
    task = ClassificationTask(
        start.create_classifier(rows),
        classes=classes,
        mixup=instantiate(mixing, num_classes=len(classes), batch_size=images.batch_size),
        label_smoothing=mixing.label_smoothing,
        held_out_crop=images.held_out_crop(),
        **arguments,
    )
    announce(run, task.model, images)
    say(start.describe_change())
    untrained = validate_untrained(run, task, images)
    direct = {name.replace("val/", "direct/"): value for name, value in untrained.items()}
    say(f"direct, before any training at this size: top-1 {direct['direct/top1']:.1%}")
    summary = fit(run, task, images, stage="transfer", started=started, figures=direct)
    if summary:
        metrics = summary["metrics"]
        say(
            f"held-out top-1 {metrics['val/top1']:.1%} after fine-tuning, "
            f"{metrics['direct/top1']:.1%} direct"
        )
        say(f"finished in {summary['seconds']:.0f} s: {run.run_dir}")
    return summary
