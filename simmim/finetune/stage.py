"""Fine-tuning, from configuration to run directory, in the same order as pretraining."""

import time
from collections.abc import Mapping
from typing import Any, TypedDict

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig
from typing_extensions import Unpack

from simmim.checkpoints.model_init import ModelInit
from simmim.models.classifier import Mode
from simmim.plan.inputs import headed_by
from simmim.plan.preflight import require_memory
from simmim.report.callback import RunReport
from simmim.tasks.task import Task
from simmim.training.fit import announce, fit
from simmim.training.run import RunOptions, create_data, create_run, training_arguments
from simmim.utils.console import say


class TaskOptions(TypedDict, total=False):
    """Options that only some tasks have."""

    mixing: DictConfig


class LabelledOptions(RunOptions, TaskOptions):
    """The options of supervised training, in addition to those of every training stage."""

    model: DictConfig
    init: DictConfig
    task: DictConfig
    ema: DictConfig


class FinetuneOptions(LabelledOptions):
    """The options of `conf/finetune.yaml`."""

    mode: Mode


def of_split(metrics: Mapping[str, float | None], split: str) -> dict[str, float | None]:
    """The metrics of `val` or `direct`, without this prefix."""
    prefix = f"{split}/"
    return {
        name.removeprefix(prefix): value
        for name, value in metrics.items()
        if name.startswith(prefix)
    }


def finetune(**options: Unpack[FinetuneOptions]) -> dict[str, Any]:
    """Supervised training of an encoder with a new head, for a task. Returns the summary."""
    started = time.monotonic()
    run_dir, mode = options["run_dir"], options["mode"]
    task: Task = instantiate(options["task"])
    start = ModelInit(options["model"], instantiate(options["init"]))
    average = instantiate(options["ema"])
    train_metric = instantiate(options["report"])
    run = create_run(options, RunReport(run_dir), [*average, train_metric])
    images = create_data(run, start.planned)
    outputs = task.label(images)
    create_model = headed_by(task.create_model, len(outputs), is_frozen=mode == "linear")
    require_memory(start, run, create_model, has_average=bool(average))
    arguments = training_arguments(run, start, images)

    pl.seed_everything(options["seed"], verbose=False)
    model = task.create_model(start.create_encoder(), len(outputs))
    task.initialise_head(model, images)
    mixing = options.get("mixing")
    module = task.create_module(model, outputs, images, mode=mode, mixing=mixing, **arguments)
    announce(run, model, images)
    summary = fit(run, module, images, stage="finetune", started=started)
    if summary:
        say(f"held-out {task.describe(of_split(summary['metrics'], 'val'))}")
        say(f"finished in {summary['seconds']:.0f} s: {run_dir}")
    return summary
