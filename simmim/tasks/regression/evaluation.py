"""Evaluates a regressor: the error and R² of each number, and the prediction for each image."""

from collections.abc import Mapping

import pytorch_lightning as pl
from jaxtyping import Float
from torch import Tensor

from simmim.checkpoints.model_init import ModelInit
from simmim.data import ImageDataModule
from simmim.tasks.evaluation import EvaluationModule, evaluate_held_out, rows_of_images
from simmim.tasks.regression.metrics import RegressionMetrics
from simmim.tasks.regression.model import Regressor
from simmim.tasks.task import Evaluation


def evaluate_regressor(
    start: ModelInit, images: ImageDataModule, trainer: pl.Trainer, names: tuple[str, ...]
) -> Evaluation:
    """Evaluates the outputs with these names on held-out images, which are labelled with them.

    Raises:
        UserError: the model does not have these outputs.
    """
    model = start.create_classifier(start.find_outputs(names), Regressor)
    assert isinstance(model, Regressor)
    metrics = RegressionMetrics(model.head.mean, model.head.std)
    normalisation = start.find_normalisation(images.normalisation)
    module = EvaluationModule(model, metrics, keep_numbers, normalisation)
    found = evaluate_held_out(module, images, trainer, start.source)
    predicted, targets = module.answers["predicted"], module.answers["targets"]
    error = (predicted - targets).double()
    by_output = list(
        zip(
            names,
            error.abs().mean(dim=0).tolist(),
            error.square().mean(dim=0).sqrt().tolist(),
            metrics.r2.by_output.tolist(),
            strict=True,
        )
    )
    header = ["image", *(f"{prefix}{name}" for name in names for prefix in ("", "predicted_"))]
    return Evaluation(
        images=len(targets),
        unreadable=len(images.val) - len(targets),
        metrics=found,
        details={"outputs": list(names)},
        tables={
            "per_output.csv": [("output", "mae", "rmse", "r2"), *by_output],
            "predictions.csv": [
                header,
                *rows_of_images(images, module.answers["index"], [targets, predicted]),
            ],
        },
        shown=f"R² {found['val/r2']:.3f}, mean absolute error {found['val/mae']:.4g}; by output:",
        lines=[
            f"{name}: mean absolute error {mae:.4g}, root mean square {rmse:.4g}, R² {r2:.3f}"
            for name, mae, rmse, r2 in by_output
        ],
    )


def keep_numbers(
    outputs: Float[Tensor, "n k"], labels: Float[Tensor, "n k"]
) -> Mapping[str, Tensor]:
    """Predicted and true numbers."""
    return {"predicted": outputs, "targets": labels}
