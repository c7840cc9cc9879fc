"""`classifier.safetensors`: an encoder with its classification head, and the classes' names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from simmim.checkpoints.description import describe_encoder
from simmim.checkpoints.encoder_file import save_described
from simmim.checkpoints.loading import load_classifier_weights
from simmim.checkpoints.published import warn_of_padding
from simmim.checkpoints.reading import read_weights
from simmim.encoder import SwinTransformer
from simmim.errors import UserError
from simmim.held_out_crop import HeldOutCrop
from simmim.models import Classifier
from simmim.normalisation import Normalisation


class TrainedClassifier(NamedTuple):
    """A classifier with the names of its outputs and the normalisation of its input.

    `model` is a `simmim.models.Classifier`, `classes` has a name for each of its outputs, in order.
    """

    model: Classifier
    classes: tuple[str, ...]
    normalisation: Normalisation


def save_classifier(
    classifier: Classifier,
    path: str | Path,
    classes: Sequence[str],
    normalisation: Normalisation = Normalisation(),
    weights: Mapping[str, Tensor] | None = None,
    held_out_crop: HeldOutCrop | None = None,
) -> None:
    """Writes the classifier's weights with their description, `classes` by name included, as metadata.

    `weights` are its whole state dict where the classifier itself holds a part of it, `held_out_crop`
    is how it was validated, which evaluation goes by.
    """
    whole = classifier.state_dict() if weights is None else weights
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in whole.items()}
    description = describe_encoder(classifier.encoder, normalisation)
    description["classes"] = list(classes)
    if held_out_crop is not None:
        description["held_out_crop"] = held_out_crop
    save_described(tensors, path, description)


def load_classifier(path: str | Path) -> TrainedClassifier:
    """Rebuilds a classifier from `classifier.safetensors`, a run of fine-tuning or its checkpoint.

    Raises:
        UserError: the file is missing, damaged, holds no classifier, or none that simmim wrote.
    """
    weights = read_weights(path)
    if weights.description is None:
        raise UserError(
            f"{path} does not say what model it holds ({weights.origin} weights); build it with "
            "simmim.create_encoder and load simmim.checkpoints' conversion into it"
        )
    if weights.num_classes is None:
        raise UserError(
            f"{path} holds an encoder without classes; fine-tune it with python -m simmim.finetune "
            f"init.checkpoint={path}, or read it with simmim.load_encoder"
        )
    model = Classifier(SwinTransformer(**weights.description["arguments"]), weights.num_classes)
    warn_of_padding(model.encoder, weights.origin)
    load_classifier_weights(
        model, weights.tensors, source=str(path), window_sizes=weights.window_sizes
    )
    description = weights.description
    normalisation = Normalisation(tuple(description["mean"]), tuple(description["std"]))
    return TrainedClassifier(model, weights.classes, normalisation)
