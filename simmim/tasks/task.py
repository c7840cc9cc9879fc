"""The interface of a task: all that the stages know of what a labelled model does.

A task is a folder beside this file and a file in `conf/task/`. Finetune and transfer get it from the
configuration, evaluate and export from the model's file (`find_task`), and the report from the facts
that its module records.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar, Literal, NamedTuple

import pytorch_lightning as pl
from omegaconf import DictConfig
from typing_extensions import Unpack

from simmim.checkpoints.model_init import ModelInit
from simmim.checkpoints.read import Weights
from simmim.data import ImageDataModule
from simmim.models.classifier import Classifier, HeadedEncoder, Mode
from simmim.models.swin import SwinTransformer
from simmim.tasks.module import LabelledModule
from simmim.training.module import TrainingArguments
from simmim.utils.errors import UserError

Outputs = Literal["all", "present"]


class Evaluation(NamedTuple):
    """What a task found on held-out images.

    Attributes:
        images: number of images that count.
        unreadable: number of those that could not be read, and do not.
        metrics: by the names that validations log them under.
        details: further entries of the summary.
        tables: rows of the CSV files that are written, by the files' names.
        shown: the main metrics in words; `lines` are logged below it.
    """

    images: int
    unreadable: int
    metrics: dict[str, float]
    details: dict[str, Any]
    tables: Mapping[str, Iterable[Sequence[Any]]]
    shown: str
    lines: Sequence[str]


class Task(ABC):
    """What a labelled model does: its labels, model, training, metrics and evaluation.

    Attributes:
        name: name of the task's folder, which model files contain.
        problem_type: Hugging Face's name for the task, by which their model chooses its loss; None
            for their default, one class an image.
    """

    name: ClassVar[str]
    problem_type: ClassVar[str | None] = None

    @abstractmethod
    def label(self, images: ImageDataModule) -> tuple[str, ...]:
        """Gives training and held-out images the labels of this task; returns the outputs' names.

        Raises:
            UserError: the data has no such labels.
        """

    def create_model(self, encoder: SwinTransformer, outputs: int) -> HeadedEncoder:
        """The encoder with a new head of this many outputs."""
        return Classifier(encoder, outputs)

    def initialise_head(  # noqa: B027  most tasks have nothing to do
        self, model: HeadedEncoder, images: ImageDataModule
    ) -> None:
        """Sets what a new head takes from the training labels, if anything."""

    @abstractmethod
    def create_module(
        self,
        model: HeadedEncoder,
        outputs: tuple[str, ...],
        images: ImageDataModule,
        *,
        mode: Mode,
        mixing: DictConfig | None,
        **training: Unpack[TrainingArguments],
    ) -> LabelledModule:
        """The LightningModule that trains a model; `mixing` are the options of that name, if any."""

    @abstractmethod
    def describe(self, metrics: Mapping[str, float | None]) -> str:
        """The main metrics in words, such as `top-1 45.0%`, from their names without `val/`."""

    @abstractmethod
    def evaluate(
        self, start: ModelInit, images: ImageDataModule, trainer: pl.Trainer, outputs: Outputs
    ) -> Evaluation:
        """Evaluates a model on held-out images, on any number of devices.

        Raises:
            UserError: the images do not have the labels that the model was trained on.
        """

    def as_classifier(self, model: HeadedEncoder) -> Classifier:
        """The model as other programs have it: with one linear layer, whose outputs it shares.

        Raises:
            UserError: other programs have no such model.
        """
        assert isinstance(model, Classifier)
        return model

    def adopt(self, weights: Weights) -> "Task":
        """This task with what a trained model's file says, where options leave it open."""
        return self


def find_task(weights: Weights) -> Task:
    """The task that a model file was trained for; UserError if there is no such task here."""
    return task_named(weights.task).adopt(weights)


def task_named(name: str) -> Task:
    """The task of this folder, with its default options; UserError if there is none."""
    if name.isidentifier() and find_spec(f"simmim.tasks.{name}") is not None:
        package = import_module(f"simmim.tasks.{name}")
        if hasattr(package, "TASK"):
            task: Task = package.TASK()
            return task
    raise UserError(
        f"the model was trained for task={name}, which this simmim does not know; upgrade simmim"
    )


def require_same_task(task: Task, start: ModelInit) -> Task:
    """The task, adopting what the checkpoint says; UserError if that is of another task."""
    if start.weights is None or start.weights.num_classes is None:
        return task
    if start.weights.task != task.name:
        raise UserError(
            f"{start.source} was trained for task={start.weights.task} and not {task.name}; "
            f"use task={start.weights.task}"
        )
    return task.adopt(start.weights)


def percent(metrics: Mapping[str, float | None], names: Mapping[str, str]) -> str:
    """Shares in words: `top-1 45.0%, top-5 90.0%`, with the `names` to show metrics by."""
    return ", ".join(
        f"{shown} {in_words(metrics[name], '.1%')}"
        for name, shown in names.items()
        if name in metrics
    )


def in_words(metric: float | None, form: str) -> str:
    """A metric in this format; `not known` for None, as summaries have it where it is not finite."""
    return "not known" if metric is None else format(metric, form)


def require_all_outputs(outputs: Outputs, task: str) -> None:
    """Raises UserError for `outputs=present`, which is for classes that exclude each other."""
    if outputs != "all":
        raise UserError(
            f"outputs={outputs} is for classes of which an image has one, and the model is of "
            f"task={task}; use outputs=all"
        )
