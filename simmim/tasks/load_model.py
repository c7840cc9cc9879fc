"""Reads the model of any task from a file."""

from pathlib import Path

from simmim.checkpoints.model_file import TrainedModel, create_headed, load_trained
from simmim.checkpoints.read import Weights
from simmim.models.classifier import HeadedEncoder
from simmim.models.swin import SwinTransformer


def load_model(path: str | Path) -> TrainedModel:
    """Rebuilds the model in a file of weights, a run of simmim or a Hugging Face folder.

    It is an encoder, SimMIM, or an encoder with the head of its task.

    Raises:
        UserError: the file is missing, damaged, or does not say what model it holds.
    """
    return load_trained(path, create_of_task)


def create_of_task(weights: Weights, encoder: SwinTransformer) -> HeadedEncoder:
    """The model of the weights' task, without them."""
    if weights.task == "classification":
        return create_headed(weights, encoder)
    # Imports Lightning, for which a classifier need not wait.
    from simmim.tasks.task import find_task

    assert weights.num_classes is not None
    return find_task(weights).create_model(encoder, weights.num_classes)
