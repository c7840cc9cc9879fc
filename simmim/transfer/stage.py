"""Transfer to another image and window size, from configuration to run directory."""

import time
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from typing_extensions import Unpack

from simmim.checkpoints.model_init import ModelInit
from simmim.finetune.stage import LabelledOptions
from simmim.plan.inputs import classifier_of
from simmim.plan.preflight import require_memory
from simmim.report.callback import RunReport
from simmim.tasks.classification.task import ClassificationTask
from simmim.training.fit import announce, fit, validate_untrained
from simmim.training.run import create_data, create_run, training_arguments
from simmim.utils.console import say


def transfer(**options: Unpack[LabelledOptions]) -> dict[str, Any]:
    """Transfers a classifier, with its head, to another image and window size. Returns the summary.

    It is validated at the new size before any training ("direct"; Swin V2, table 1) and after.
    """
    started = time.monotonic()
    run_dir, mixing = options["run_dir"], options["mixing"]
    start = ModelInit(options["model"], instantiate(options["init"]))
    average = instantiate(options["ema"])
    train_accuracy = instantiate(options["report"])
    run = create_run(options, RunReport(run_dir), [*average, train_accuracy])
    images = create_data(run, start.planned, start.crop_as_validated(options["data"]))
    images.keep_labelled()
    classes = images.require_classes()
    rows = start.find_head(classes)
    require_memory(start, run, classifier_of(len(rows)), has_average=bool(average))
    arguments = training_arguments(run, start, images)

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
    metrics = validate_untrained(run, task, images)
    direct = {name.replace("val/", "direct/"): value for name, value in metrics.items()}
    say(f"direct, before any training at this size: top-1 {direct['direct/top1']:.1%}")
    summary = fit(run, task, images, stage="transfer", started=started, untrained=direct)
    if summary:
        metrics = summary["metrics"]
        say(
            f"held-out top-1 {metrics['val/top1']:.1%} after fine-tuning, "
            f"{metrics['direct/top1']:.1%} direct"
        )
        say(f"finished in {summary['seconds']:.0f} s: {run_dir}")
    return summary
