"""The task `regression`: one or several numbers an image."""

from collections.abc import Mapping, Sequence

import pytorch_lightning as pl
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor
from typing_extensions import Unpack

from simmim.checkpoints.model_init import ModelInit
from simmim.checkpoints.read import Weights
from simmim.data import ImageDataModule
from simmim.data.sources.table import TargetImages, as_names
from simmim.models.classifier import Classifier, HeadedEncoder, Mode
from simmim.models.swin import SwinTransformer
from simmim.tasks.evaluation import EvaluationModule, evaluate_held_out, rows_of_images
from simmim.tasks.regression.labels import label_numbers
from simmim.tasks.regression.metrics import RegressionMetrics
from simmim.tasks.regression.model import Regressor
from simmim.tasks.regression.module import RegressionModule
from simmim.tasks.task import Evaluation, Outputs, Task, require_all_outputs
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

    def describe(self, metrics: Mapping[str, float]) -> str:
        """R² and mean absolute error."""
        return f"R² {metrics['r2']:.3f}, mean absolute error {metrics['mae']:.4g}"

    def evaluate(
        self, start: ModelInit, images: ImageDataModule, trainer: pl.Trainer, outputs: Outputs
    ) -> Evaluation:
        """Error and R² of each number, and the prediction for each image."""
        require_all_outputs(outputs, self.name)
        names = self.label(images)
        rows = start.find_outputs(names)
        model = start.create_classifier(rows, self.create_model)
        assert isinstance(model, Regressor)
        metrics = RegressionMetrics(model.head.mean, model.head.std)
        normalisation = start.find_normalisation(images.normalisation)
        module = EvaluationModule(model, metrics, keep, normalisation)
        found = evaluate_held_out(module, images, trainer, start.source)
        answers = {name: tensor.cpu() for name, tensor in module.answers.items()}
        order = answers["index"].argsort()
        predicted, wanted = answers["predicted"][order], answers["wanted"][order]
        r2 = metrics.r2.by_output.tolist()
        error = (predicted - wanted).double()
        by_output = [
            (name, mae, rmse, one)
            for name, mae, rmse, one in zip(
                names,
                error.abs().mean(dim=0).tolist(),
                error.square().mean(dim=0).sqrt().tolist(),
                r2,
                strict=True,
            )
        ]
        images_of = rows_of_images(images, answers["index"][order], [wanted, predicted])
        header = ["image", *(f"{what}{name}" for name in names for what in ("", "predicted_"))]
        return Evaluation(
            images=len(wanted),
            unreadable=len(images.val) - len(wanted),
            metrics=found,
            details={"outputs": list(names)},
            tables={
                "per_output.csv": [("output", "mae", "rmse", "r2"), *by_output],
                "predictions.csv": [header, *images_of],
            },
            shown=f"R² {found['val/r2']:.3f}, mean absolute error {found['val/mae']:.4g}; by output:",
            lines=[
                f"{name}: mean absolute error {mae:.4g}, root mean square {rmse:.4g}, R² {one:.3f}"
                for name, mae, rmse, one in by_output
            ],
        )

    def as_classifier(self, model: HeadedEncoder) -> Classifier:
        """The model with its scale folded into the linear layer."""
        assert isinstance(model, Regressor)
        return model.as_classifier()

    def adopt(self, weights: Weights) -> "Regression":
        """Regression onto the columns that the model was trained on, if none are chosen."""
        return Regression(self.columns or weights.classes or None)


def keep(outputs: Float[Tensor, "n k"], labels: Float[Tensor, "n k"]) -> dict[str, Tensor]:
    """Predicted and true numbers."""
    return {"predicted": outputs, "wanted": labels}
