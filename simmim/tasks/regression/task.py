"""The task `regression`: one or several numbers an image."""

from collections.abc import Mapping, Sequence

import pytorch_lightning as pl
from omegaconf import DictConfig
from typing_extensions import Unpack

from simmim.checkpoints.model_init import ModelInit
from simmim.checkpoints.read import Weights
from simmim.data import ImageDataModule
from simmim.data.sources.label_table import TargetImages, as_names
from simmim.models.classifier import Classifier, HeadedEncoder, Mode
from simmim.models.swin import SwinTransformer
from simmim.tasks.regression.evaluation import evaluate_regressor
from simmim.tasks.regression.labels import label_numbers
from simmim.tasks.regression.model import Regressor
from simmim.tasks.regression.module import RegressionModule
from simmim.tasks.task import Evaluation, Outputs, Task, in_words, require_all_outputs
from simmim.training.module import TrainingArguments
from simmim.utils.errors import UserError


class Regression(Task):
    """One or several numbers an image, from columns of a table.

    Args:
        columns: the columns of numbers to predict (None: all that have more than 0 and 1).
    """

    name = "regression"
    problem_type = "regression"

    def __init__(self, columns: str | Sequence[str] | None = None) -> None:
        self.columns = as_names(columns)

    def label(self, images: ImageDataModule) -> tuple[str, ...]:
        """Numbers of the table's columns; returns the columns' names."""
        return label_numbers(images, self.columns)

    def create_model(self, encoder: SwinTransformer, outputs: int) -> Regressor:
        """The encoder with a new head for this many numbers."""
        return Regressor(encoder, outputs)

    def initialise_head(self, model: HeadedEncoder, images: ImageDataModule) -> None:
        """Gives the head the scale of the training targets.

        Raises:
            UserError: all training images have the same number in a column.
        """
        assert isinstance(model, Regressor) and isinstance(images.train, TargetImages)
        targets = images.train.targets.double()
        mean, std = targets.mean(dim=0), targets.std(dim=0, unbiased=False)
        for name, one in zip(images.train.names, std.tolist(), strict=True):
            if one == 0:
                raise UserError(
                    f"all training images have the same {name}, from which nothing is learned; choose "
                    "other columns by task.columns=[NAME]"
                )
        model.head.set_scale(mean.tolist(), std.tolist())

    def create_module(
        self,
        model: HeadedEncoder,
        outputs: tuple[str, ...],
        images: ImageDataModule,
        *,
        mode: Mode,
        mixing: DictConfig | None,
        **training: Unpack[TrainingArguments],
    ) -> RegressionModule:
        """Training by smooth L1."""
        return RegressionModule(
            model, outputs=outputs, mode=mode, held_out_crop=images.held_out_crop(), **training
        )

    def describe(self, metrics: Mapping[str, float | None]) -> str:
        """R² and mean absolute error."""
        r2, mae = in_words(metrics["r2"], ".3f"), in_words(metrics["mae"], ".4g")
        return f"R² {r2}, mean absolute error {mae}"

    def evaluate(
        self, start: ModelInit, images: ImageDataModule, trainer: pl.Trainer, outputs: Outputs
    ) -> Evaluation:
        """Error and R² of each number, and the prediction for each image."""
        require_all_outputs(outputs, self.name)
        return evaluate_regressor(start, images, trainer, self.label(images))

    def as_classifier(self, model: HeadedEncoder) -> Classifier:
        """The model with its scale folded into the linear layer."""
        assert isinstance(model, Regressor)
        return model.as_classifier()

    def adopt(self, weights: Weights) -> "Regression":
        """Regression onto the columns that the model was trained on, if none are chosen."""
        return Regression(self.columns or weights.classes or None)
