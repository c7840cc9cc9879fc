"""Fine-tuning, from configuration to run directory, in the same order as pretraining."""

import time
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig
from typing_extensions import Unpack

from simmim.checkpoints.model_init import ModelInit
from simmim.models.classifier import Classifier, Mode
from simmim.plan.inputs import classifier_of
from simmim.plan.preflight import require_memory
from simmim.report.callback import RunReport
from simmim.tasks.classification.task import ClassificationTask
from simmim.training.fit import announce, fit
from simmim.training.run import RunOptions, create_data, create_run, training_arguments
from simmim.utils.console import say


class LabelledOptions(RunOptions):
    """The options of supervised training, in addition to those of every training stage."""

    model: DictConfig
    init: DictConfig
    mixing: DictConfig
    ema: DictConfig


class FinetuneOptions(LabelledOptions):
    """The options of `conf/finetune.yaml`."""

    mode: Mode


def finetune(**options: Unpack[FinetuneOptions]) -> dict[str, Any]:
    """Supervised training of an encoder with a new linear head. Returns the summary."""
    started = time.monotonic()
    run_dir, mode, mixing = options["run_dir"], options["mode"], options["mixing"]
    start = ModelInit(options["model"], instantiate(options["init"]))
    average = instantiate(options["ema"])
    train_accuracy = instantiate(options["report"])
    run = create_run(options, RunReport(run_dir), [*average, train_accuracy])
    images = create_data(run, start.planned)
    images.keep_labelled()
    classes = images.require_classes()
    create_model = classifier_of(len(classes), is_frozen=mode == "linear")
    require_memory(start, run, create_model, has_average=bool(average))
    arguments = training_arguments(run, start, images)

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
        say(f"finished in {summary['seconds']:.0f} s: {run_dir}")
    return summary
