"""Transfer to another image and window size, from configuration to run directory."""

import time
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from typing_extensions import Unpack

from simmim.checkpoints.model_init import ModelInit
from simmim.finetune.stage import LabelledOptions, of_split
from simmim.plan.inputs import headed_by
from simmim.plan.preflight import require_memory
from simmim.report.callback import RunReport
from simmim.tasks.task import Task, require_same_task
from simmim.training.fit import announce, fit, validate_untrained
from simmim.training.run import create_data, create_run, training_arguments
from simmim.utils.console import say


def transfer(**options: Unpack[LabelledOptions]) -> dict[str, Any]:
    """Transfers a model, with its head, to another image and window size. Returns the summary.

    It is validated at the new size before any training ("direct"; Swin V2, table 1) and after.
    """
    started = time.monotonic()
    run_dir = options["run_dir"]
    asked: Task = instantiate(options["task"])
    start = ModelInit(options["model"], instantiate(options["init"]))
    task = require_same_task(asked, start)
    average = instantiate(options["ema"])
    train_metric = instantiate(options["report"])
    run = create_run(options, RunReport(run_dir), [*average, train_metric])
    images = create_data(run, start.planned, start.crop_as_validated(options["data"]))
    outputs = task.label(images)
    rows = start.find_outputs(outputs)
    create_model = headed_by(task.create_model, len(rows))
    require_memory(start, run, create_model, has_average=bool(average))
    arguments = training_arguments(run, start, images)

    pl.seed_everything(options["seed"], verbose=False)
    model = start.create_classifier(rows, task.create_model)
    mixing = options.get("mixing")
    module = task.create_module(model, outputs, images, mode="full", mixing=mixing, **arguments)
    announce(run, model, images)
    say(start.describe_change())
    metrics = validate_untrained(run, module, images)
    direct = {name.replace("val/", "direct/"): value for name, value in metrics.items()}
    shown = task.describe(of_split(metrics, "val"))
    say(f"direct, before any training at this size: {shown}")
    summary = fit(run, module, images, stage="transfer", started=started, untrained=direct)
    if summary:
        tuned = task.describe(of_split(summary["metrics"], "val"))
        say(f"held-out {tuned} after fine-tuning; {shown} direct")
        say(f"finished in {summary['seconds']:.0f} s: {run_dir}")
    return summary
