"""Writes and reads simmim's model files, which have all that rebuilds a model, and no code.

These are `encoder.safetensors`, `classifier.safetensors` and checkpoints of runs; `load_trained`
builds a model from any of them.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from simmim.checkpoints.checksums import checksum_of
from simmim.checkpoints.formats.compatibility import warn_of_padding
from simmim.checkpoints.load import load_classifier_weights, load_encoder_weights
from simmim.checkpoints.metadata import describe_encoder
from simmim.checkpoints.read import Weights, read_weights
from simmim.models.classifier import Classifier, HeadedEncoder
from simmim.models.heads import reconstruction_head_kind
from simmim.models.simmim import SimMIM
from simmim.models.swin import SwinTransformer
from simmim.utils.errors import UserError
from simmim.utils.files import written_beside
from simmim.utils.held_out_crop import HeldOutCrop
from simmim.utils.normalization import Normalisation


def save_encoder(
    encoder: SwinTransformer,
    path: str | Path,
    normalisation: Normalisation = Normalisation(),
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes the encoder's weights with their description as metadata.

    `weights` is its whole state dict, for an encoder that holds only a shard of it.
    """
    whole = encoder.state_dict() if weights is None else weights
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in whole.items()}
    save_described(tensors, path, describe_encoder(encoder, normalisation))


def save_described(
    tensors: dict[str, Tensor], path: str | Path, description: Mapping[str, Any]
) -> None:
    """Writes tensors, their description and a checksum of both, completely or not at all.

    The same content gives the same bytes: safetensors writes several metadata keys in any order, so
    there is only one.
    """
    checksum = checksum_of(tensors, json.dumps(description))
    metadata = {"simmim": json.dumps({**description, "crc32": checksum})}
    with written_beside(path) as beside:
        save_file(tensors, beside, metadata=metadata)
        # safetensors creates files that only their owner can read, whatever the umask.
        os.umask(mask := os.umask(0))
        beside.chmod(0o666 & ~mask)


def load_encoder(path: str | Path) -> SwinTransformer:
    """Rebuilds an encoder from `encoder.safetensors` or a training checkpoint of simmim.

    Raises:
        UserError: the file is missing, damaged, or not one that simmim writes.
    """
    return rebuild_encoder(read_described(path), str(path))


class TrainedClassifier(NamedTuple):
    """A classifier with the names of its outputs and the normalisation of its input.

    `model` is in training mode, `classes` has a name for each of its outputs, in order.
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
    """Writes the classifier's weights; metadata are their description and the names of `classes`.

    `weights` is its whole state dict, for a classifier that holds only a shard of it;
    `held_out_crop` is the crop that it was validated with, which evaluation then uses.
    """
    save_labelled(classifier, path, classes, normalisation, weights, held_out_crop)


def save_labelled(
    model: HeadedEncoder,
    path: str | Path,
    outputs: Sequence[str],
    normalisation: Normalisation,
    weights: Mapping[str, Tensor] | None = None,
    held_out_crop: HeldOutCrop | None = None,
    task: str = "classification",
) -> None:
    """Writes the model of a task, with the names of its `outputs`; otherwise as `save_classifier`."""
    whole = model.state_dict() if weights is None else weights
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in whole.items()}
    description = describe_encoder(model.encoder, normalisation)
    description["classes"] = list(outputs)
    if task != "classification":
        description["task"] = task
    if held_out_crop is not None:
        description["held_out_crop"] = held_out_crop
    save_described(tensors, path, description)


def load_classifier(path: str | Path) -> TrainedClassifier:
    """Rebuilds a classifier from `classifier.safetensors`, a fine-tuning run or its checkpoint.

    Raises:
        UserError: the file is missing, damaged, holds no classifier, or was not written by simmim.
    """
    weights = read_described(path)
    if weights.num_classes is None:
        raise UserError(
            f"{path} holds an encoder without classes; fine-tune it with python -m simmim.finetune "
            f"init.checkpoint={path}, or read it with simmim.load_encoder"
        )
    if weights.task != "classification":
        raise UserError(
            f"{path} holds a model of task={weights.task}; read it with simmim.load_model"
        )
    trained = rebuild(weights, str(path))
    assert isinstance(trained.model, Classifier)
    return TrainedClassifier(trained.model.train(), trained.classes, trained.normalisation)


def labelled_kind(task: str) -> Literal["classifier", "model"]:
    """What a task's model is called in the names of its file and of the function that reads it."""
    return "classifier" if task == "classification" else "model"


class TrainedModel(NamedTuple):
    """A model in eval mode, the names of its outputs if it has a head, its normalisation.

    `held_out_crop` is the crop that it was validated with; None if its file does not say. `task` is
    what its head was trained for.
    """

    model: SwinTransformer | HeadedEncoder | SimMIM
    classes: tuple[str, ...]
    normalisation: Normalisation
    held_out_crop: HeldOutCrop | None = None
    task: str = "classification"

    @property
    def outputs(self) -> int | None:
        """Number of the head's outputs; None without a head for labels."""
        if not isinstance(self.model, HeadedEncoder):
            return None
        return len(self.model.state_dict()["head.linear.weight"])

    @property
    def kind(self) -> Literal["encoder", "classifier", "model"]:
        """What it is called in the names of its file and of the function that reads it."""
        return labelled_kind(self.task) if isinstance(self.model, HeadedEncoder) else "encoder"

    @property
    def encoder(self) -> SwinTransformer:
        """The encoder alone."""
        return self.model if isinstance(self.model, SwinTransformer) else self.model.encoder


def create_headed(weights: Weights, encoder: SwinTransformer) -> HeadedEncoder:
    """The classifier that weights describe, without them; UserError if they are of another task."""
    if weights.task != "classification":
        raise UserError(
            f"the model is of task={weights.task} and a classifier is needed; use simmim.load_model"
        )
    assert weights.num_classes is not None
    return Classifier(encoder, weights.num_classes)


def load_trained(
    path: str | Path,
    create: Callable[[Weights, SwinTransformer], HeadedEncoder] = create_headed,
) -> TrainedModel:
    """Rebuilds the model that a file, a run of simmim or a Hugging Face folder describes.

    `create` builds the model of a file with a head; `simmim.load_model` knows all tasks.

    Raises:
        UserError: the file is missing, damaged, or does not say what model it holds.
    """
    return rebuild(read_described(path), str(path), create)


def read_described(path: str | Path) -> Weights:
    """Weights that say what model they are of; UserError if they do not, or cannot be read."""
    weights = read_weights(path)
    if weights.description is None:
        raise UserError(
            f"{path} does not say what model it holds ({weights.origin} weights); give a file or run "
            "of simmim or a Hugging Face folder, e.g. what finetune with init.checkpoint= writes, or "
            "build it with simmim.create_encoder and load simmim.checkpoints' conversion into it"
        )
    return weights


def rebuild_encoder(weights: Weights, source: str) -> SwinTransformer:
    """The encoder that weights describe, with them; `source` is their file's name in messages."""
    encoder = _create_described(weights)
    load_encoder_weights(encoder, weights.encoder, source=source, window_sizes=weights.window_sizes)
    return encoder


def rebuild(
    weights: Weights,
    source: str,
    create: Callable[[Weights, SwinTransformer], HeadedEncoder] = create_headed,
) -> TrainedModel:
    """The model that weights describe, with them; otherwise as `load_trained`."""
    model: SwinTransformer | HeadedEncoder | SimMIM
    if weights.num_classes is None:
        model = _with_reconstruction(rebuild_encoder(weights, source), weights.tensors, source)
    else:
        model = create(weights, _create_described(weights))
        load_classifier_weights(
            model, weights.tensors, source=source, window_sizes=weights.window_sizes
        )
    assert weights.description is not None
    crop = weights.description.get("held_out_crop")
    normalisation = weights.normalisation
    assert normalisation is not None
    return TrainedModel(model.eval(), weights.classes, normalisation, crop, weights.task)


def _create_described(weights: Weights) -> SwinTransformer:
    assert weights.description is not None
    encoder = SwinTransformer(**weights.description["arguments"])
    warn_of_padding(encoder, weights.origin)
    return encoder


def _with_reconstruction(
    encoder: SwinTransformer, tensors: Mapping[str, Tensor], source: str
) -> SwinTransformer | SimMIM:
    """SimMIM if there are a mask token and a head, else the encoder unchanged."""
    outside = {name: value for name, value in tensors.items() if not name.startswith("encoder.")}
    kind = reconstruction_head_kind([name.removeprefix("head.") for name in outside])
    if "mask_token" not in outside or kind is None:
        return encoder
    model = SimMIM(encoder, kind)
    lacks = model.load_state_dict(outside, strict=False)
    missing = [name for name in lacks.missing_keys if not name.startswith("encoder.")]
    if missing or lacks.unexpected_keys:
        raise UserError(
            f"{source} holds a head of another kind than {kind}, or a part of one (missing: "
            f"{', '.join(missing) or 'none'}; unexpected: {', '.join(lacks.unexpected_keys) or 'none'})"
            "; give the checkpoint of a whole run"
        )
    return model
