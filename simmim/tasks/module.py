"""Base class of the LightningModules that train on labels: validation, weights, checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torchmetrics import Metric
from typing_extensions import Unpack

from simmim.checkpoints.model_file import labelled_kind, save_labelled
from simmim.data.dataset import Sample, is_counted
from simmim.models.classifier import HeadedEncoder, Mode
from simmim.training.module import TrainingArguments, TrainingModule
from simmim.utils.held_out_crop import HeldOutCrop


class HeldOutMetrics(nn.Module):
    """Metrics of held-out images over all ranks, by the names that are logged behind `val/`."""

    def __init__(self, **metrics: Metric) -> None:
        super().__init__()
        for name, metric in metrics.items():
            self.add_module(name, metric)
        self._names = tuple(metrics)

    def update(self, outputs: Float[Tensor, "n outputs"], labels: Shaped[Tensor, "n *_"]) -> None:
        """Adds one batch, which may be empty."""
        raise NotImplementedError

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics, by the names that they are logged under."""
        return {f"val/{name}": getattr(self, name) for name in self._names}


class Quality(NamedTuple):
    """The metric that tells how well a model of a task does; 1 is the best.

    Attributes:
        metric: its name, without `val/`.
        shown: its name in words.
        baseline: what a guess that ignores the image reaches.
        baseline_shown: that guess in words.
        explanation: a sentence on what the metric is.
        others: other metrics with the same scale, by name, in words.
    """

    metric: str
    shown: str
    baseline: float
    baseline_shown: str
    explanation: str
    others: Mapping[str, str] = MappingProxyType({})


class LabelledModule(TrainingModule):
    """Trains a model on labels.

    Args:
        model: encoder and head.
        outputs: names of the model's outputs, in order.
        mode: `full` trains everything; `linear` freezes the encoder and trains the head alone.
        held_out_crop: how validation images are cropped; stored in the checkpoints.
        training: see `TrainingArguments`.

    Attributes:
        task: name of the task, which its files contain.
        held_out: the metrics of a validation.
    """

    model: HeadedEncoder
    task: ClassVar[str]

    def __init__(
        self,
        model: HeadedEncoder,
        *,
        outputs: tuple[str, ...],
        mode: Mode = "full",
        held_out_crop: HeldOutCrop | None = None,
        **training: Unpack[TrainingArguments],
    ) -> None:
        super().__init__(model, **training)
        self.outputs = outputs
        self.mode = mode
        self.held_out_crop = held_out_crop
        if mode == "linear":
            model.encoder.requires_grad_(False)
        self.held_out = self.create_metrics()
        self.metric_names = tuple(self.held_out.metrics)

    def create_metrics(self) -> HeldOutMetrics:
        """New metrics of this task."""
        raise NotImplementedError

    def quality(self) -> Quality:
        """The metric that the report judges a run by."""
        raise NotImplementedError

    def report_facts(self) -> dict[str, Any]:
        """The task and its quality metric."""
        quality = self.quality()
        facts = {**quality._asdict(), "others": dict(quality.others)}
        return {"task": self.task, "quality": facts}

    def save_weights(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Writes the whole model beside `encoder.safetensors`."""
        super().save_weights(folder, weights)
        save_labelled(
            self.model,
            folder / f"{labelled_kind(self.task)}.safetensors",
            self.outputs,
            self.normalisation,
            weights,
            self.held_out_crop,
            task=self.task,
        )

    def train(self, mode: bool = True) -> "LabelledModule":
        """Switches to training mode; a frozen encoder stays in evaluation mode, without drop path."""
        super().train(mode)
        if self.mode == "linear":
            self.model.encoder.eval()
        return self

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Updates the metrics; repeats that pad the ranks to equal length do not count."""
        self.add_to(self.held_out, batch)

    def add_to(self, metrics: HeldOutMetrics, batch: Sample) -> None:
        """Adds a batch to metrics; under FSDP, every rank has to run the model on each of its own."""
        assert isinstance(batch.label, Tensor)
        counted = is_counted(batch)
        outputs = self.model(self.normalisation.normalise(batch.image)).float()
        metrics.update(outputs[counted], batch.label[counted])

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics."""
        self.log_validation(self.held_out.metrics)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the task, the validation crop, and the names of the outputs, in order."""
        super().on_save_checkpoint(checkpoint)
        if self.held_out_crop is not None:
            checkpoint["encoder"]["held_out_crop"] = self.held_out_crop
        checkpoint["task"] = self.task
        checkpoint["classes"] = list(self.outputs)
