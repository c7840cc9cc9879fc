"""A whole model from whatever simmim writes: encoder, classifier, or SimMIM."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from simmim.checkpoints.loading import load_classifier_weights, load_encoder_weights
from simmim.checkpoints.published import warn_of_padding
from simmim.checkpoints.reading import read_weights
from simmim.encoder import SwinTransformer
from simmim.errors import UserError
from simmim.heads import reconstruction_head_kind
from simmim.held_out_crop import HeldOutCrop
from simmim.models import Classifier, SimMIM
from simmim.normalisation import Normalisation


class TrainedModel(NamedTuple):
    """A model in eval mode, the names of its outputs if it is a classifier, its normalisation.

    `held_out_crop` is how a classifier was validated, None where its file does not tell.
    """

    model: SwinTransformer | Classifier | SimMIM
    classes: tuple[str, ...]
    normalisation: Normalisation
    held_out_crop: HeldOutCrop | None = None

    @property
    def encoder(self) -> SwinTransformer:
        """The encoder alone."""
        return self.model if isinstance(self.model, SwinTransformer) else self.model.encoder


def load_trained(path: str | Path) -> TrainedModel:
    """Rebuilds the model that a file, a run of simmim or a Hugging Face folder describes.

    Raises:
        UserError: the file is missing, damaged, or does not say what model it holds.
    """
    weights = read_weights(path)
    if weights.description is None:
        raise UserError(
            f"{path} does not say what model it holds ({weights.origin} weights); give a file or run "
            "of simmim or a Hugging Face folder, e.g. what finetune with init.checkpoint= writes"
        )
    description = weights.description
    normalisation = Normalisation(tuple(description["mean"]), tuple(description["std"]))
    encoder = SwinTransformer(**description["arguments"])
    windows = weights.window_sizes
    warn_of_padding(encoder, weights.origin)
    model: SwinTransformer | Classifier | SimMIM = encoder
    if weights.num_classes is not None:
        model = Classifier(encoder, weights.num_classes)
        load_classifier_weights(model, weights.tensors, source=str(path), window_sizes=windows)
    else:
        load_encoder_weights(encoder, weights.encoder, source=str(path), window_sizes=windows)
        model = _with_reconstruction(encoder, weights.tensors, str(path))
    crop = description.get("held_out_crop")
    return TrainedModel(model.eval(), weights.classes, normalisation, crop)


def _with_reconstruction(
    encoder: SwinTransformer, tensors: Mapping[str, Tensor], source: str
) -> SwinTransformer | SimMIM:
    """SimMIM where mask token and head are there, else the encoder as it is."""
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
