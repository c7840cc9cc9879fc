"""Evaluation of a labelled model as a LightningModule: metrics, and an answer per image."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from simmim.data import ImageDataModule
from simmim.data.dataset import Sample, is_counted
from simmim.models.classifier import HeadedEncoder
from simmim.tasks.module import HeldOutMetrics
from simmim.training.fit import validation_metrics
from simmim.utils.errors import UserError
from simmim.utils.normalization import Normalisation

# From outputs and labels to what is kept of each image, by name.
Answer = Callable[[Float[Tensor, "n outputs"], Tensor], Mapping[str, Tensor]]


class EvaluationModule(pl.LightningModule):
    """Evaluates a model; repeats that pad the ranks to equal length do not count.

    Args:
        model: encoder and head.
        metrics: the metrics to log.
        answer: what to keep of each image.
        label: maps the data's labels to the model's; raises UserError for a missing one.

    Attributes:
        answers: what `answer` gives, of the images of all ranks in their order, after a validation;
            `index` has their numbers.
    """

    def __init__(
        self,
        model: HeadedEncoder,
        metrics: HeldOutMetrics,
        answer: Answer,
        normalisation: Normalisation,
        label: Callable[[Tensor], Tensor] = lambda labels: labels,
    ) -> None:
        super().__init__()
        self.model = model
        self.normalisation = normalisation
        self.held_out = metrics
        self.answer = answer
        self.label = label
        self.answers: dict[str, Tensor] = {}
        self._collected = _Collected()

    def on_before_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Maps the labels; on the CPU, this does not wait for the device."""
        assert isinstance(batch.label, Tensor)
        return batch._replace(label=self.label(batch.label))

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Adds the metrics and answers of one batch."""
        assert isinstance(batch.label, Tensor) and isinstance(batch.sample_index, Tensor)
        counted = is_counted(batch)
        outputs = self.model(self.normalisation.normalise(batch.image)).float()[counted]
        labels = batch.label[counted]
        self.held_out.update(outputs, labels)
        answer = self.answer(outputs, labels)
        self._collected.update({**answer, "index": batch.sample_index[counted]})

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics, and gathers the answers of all ranks."""
        self.log_dict({name: metric.compute() for name, metric in self.held_out.metrics.items()})
        answers = {name: column.cpu() for name, column in self._collected.compute().items()}
        order = answers["index"].argsort()
        self.answers = {name: column[order] for name, column in answers.items()}


def evaluate_held_out(
    module: EvaluationModule, images: ImageDataModule, trainer: pl.Trainer, source: str | None
) -> dict[str, float]:
    """Runs the evaluation of a `module` by the `trainer` on held-out `images`; returns its metrics.

    `source` is the name of the model's file in messages.

    Raises:
        UserError: no image could be read, or some output is not finite.
    """
    trainer.validate(module, datamodule=images, verbose=False)
    require_some(len(module.answers["index"]), len(images.val))
    metrics = validation_metrics(trainer)
    if metrics["val/loss"] != metrics["val/loss"] or abs(metrics["val/loss"]) == float("inf"):
        raise UserError(f"outputs of {source} are not finite: the model had diverged; use another")
    return metrics


def require_some(read: int, images: int) -> None:
    """Raises UserError if none of the images could be read."""
    if read == 0:
        raise UserError(f"none of {images} images could be read; check data.root")


def rows_of_images(
    images: ImageDataModule, order: Int[Tensor, " n"], columns: Sequence[Tensor]
) -> list[list[Any]]:
    """A row for each held-out image: its name, then the entries of the `n k` columns in turns."""
    numbers = torch.stack([column.double() for column in columns], dim=2).flatten(1).tolist()
    return [
        [images.val.identifier(index), *(f"{number:.7g}" for number in row)]
        for index, row in zip(order.tolist(), numbers, strict=True)
    ]


class _Collected(Metric):
    """Collects answers; torchmetrics gathers them over ranks with different numbers of images."""

    full_state_update = False
    names: tuple[str, ...] = ()

    def update(self, answers: Mapping[str, Tensor]) -> None:
        for name, column in answers.items():
            if name not in self.names:
                self.names = (*self.names, name)
                self.add_state(name, default=[], dist_reduce_fx="cat")
            getattr(self, name).append(column)

    def compute(self) -> dict[str, Tensor]:
        return {name: dim_zero_cat(getattr(self, name)) for name in self.names}
