"""Initialises a model from a file, with its weights and encoder description, or from scratch."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from simmim.checkpoints.class_names import head_rows
from simmim.checkpoints.formats.compatibility import warn_of_padding
from simmim.checkpoints.load import (
    Coverage,
    Initialisation,
    load_classifier_weights,
    load_encoder_weights,
    match_weights,
)
from simmim.checkpoints.read import Weights, read_weights
from simmim.models.classifier import Classifier, HeadedEncoder
from simmim.models.swin import ARCHITECTURES, SwinTransformer
from simmim.utils.console import say, warn
from simmim.utils.errors import UserError
from simmim.utils.normalization import Normalisation
from simmim.utils.sizes import Pair, as_pair, show

# The published sizes, in each family from the smallest on.
_FOR_PHOTOGRAPHS = [name for name in ARCHITECTURES if name != "swinv2_nano"]
# Values of each tensor; enough to distinguish two trainings.
_COMPARED_VALUES = 100
# If standard deviations differ by this factor, the values are in different units.
_OTHER_UNITS = 30


class ModelInit:
    """The encoder that `model` describes, and the weights that it starts from.

    Attributes:
        planned: the encoder on the meta device, for its shapes before any memory is allocated.
        weights: those in `init.checkpoint`; None from scratch.

    Raises:
        UserError: the weights cannot be read, or the model cannot be built or does not match them.
    """

    def __init__(self, model: DictConfig, init: Initialisation) -> None:
        self.source = init.checkpoint
        self.strict = init.strict
        self.weights = None if init.checkpoint is None else read_weights(init.checkpoint)
        self._model = model
        self._inherited = inherit(model, self.weights)
        self.planned: SwinTransformer = self.plan_encoder()
        require_window(self.planned)
        self._tell_windows(model)
        if self.weights is not None:
            warn_of_padding(self.planned, self.weights.origin)
            # Shapes are compared before data is read.
            match_weights(
                self.planned,
                self.weights.encoder,
                source=str(self.source),
                strict=self.strict,
                window_sizes=self.weights.window_sizes,
            )

    def plan_encoder(self, **changes: Any) -> SwinTransformer:
        """The encoder on the meta device, without weights, with these options of `model` changed."""
        with torch.device("meta"):
            return self._build(**changes)

    def create_encoder(self) -> SwinTransformer:
        """The encoder with its weights; logs which tensors were loaded, or that it has none."""
        encoder = self._build()
        if self.weights is None:
            say("from scratch: init.checkpoint is not set")
            return encoder
        if self.weights.num_classes is not None:
            say(
                f"the head of {self.source} ({self.weights.num_classes} outputs) is left out; "
                "python -m simmim.transfer carries it over"
            )
        self._report(
            load_encoder_weights(
                encoder,
                self.weights.encoder,
                source=str(self.source),
                strict=self.strict,
                window_sizes=self.weights.window_sizes,
            )
        )
        return encoder

    def smaller_models(self) -> list[str]:
        """Smaller architectures of the same family, largest first; none if there are weights."""
        shape = ("patch_size", "embed_dim", "depths", "num_heads")
        if self.weights is not None or any(self._model.get(name) is not None for name in shape):
            return []
        asked = self._model.get("name")
        family = [
            name for name in _FOR_PHOTOGRAPHS if name.split("_")[0] == str(asked).split("_")[0]
        ]
        return family[: family.index(asked)][::-1] if asked in family else []

    def find_normalisation(self, of_data: Normalisation) -> Normalisation:
        """The normalisation that the checkpoint was trained with, if known; else that of the data.

        Also the data's if the two are for values in different units, such as [0, 1] and counts.
        """
        trained = None if self.weights is None else self.weights.normalisation
        if trained is None or trained == of_data or len(trained.mean) != len(of_data.mean):
            return of_data
        scales = [theirs / own for theirs, own in zip(trained.std, of_data.std, strict=True)]
        if max(*scales, *(1 / scale for scale in scales)) > _OTHER_UNITS:
            warn(
                f"normalised by the data's own mean {of_data.mean}, std {of_data.std}: the checkpoint "
                f"was trained on values in other units, of mean {trained.mean}, std {trained.std}"
            )
            return of_data
        say(f"normalised as the checkpoint was trained: mean {trained.mean}, std {trained.std}")
        return trained

    def crop_as_validated(self, data: DictConfig) -> DictConfig:
        """`data` with the crop that the checkpoint was validated with, unless `data` sets one."""
        described = None if self.weights is None else self.weights.description
        crop = None if described is None else described.get("held_out_crop")
        if crop is None or any(data.get(name) is not None for name in crop):
            return data
        if crop != {"crop_ratio": 1.0, "squash": False}:
            shown = " ".join(f"data.{name}={as_typed(value)}" for name, value in crop.items())
            say(f"held-out images are shown as the checkpoint was validated: {shown}")
        shown_so: dict[Any, Any] = {**data, **crop}
        return OmegaConf.create(shown_so)

    def digest(self) -> str | None:
        """A hash that identifies these weights, wherever their file is; None from scratch.

        It covers the name, shape and first values of each tensor.
        """
        if self.weights is None:
            return None
        content = hashlib.sha256()
        for name, tensor in sorted(self.weights.tensors.items()):
            values = tensor.detach().flatten()[:_COMPARED_VALUES].to("cpu", torch.float32)
            content.update(f"{name} {tuple(tensor.shape)} {values.tolist()}".encode())
        return content.hexdigest()[:12]

    def find_outputs(self, classes: tuple[str, ...]) -> list[int]:
        """The index in the file's head of each of these classes (or outputs), matched by name.

        Raises:
            UserError: there is no file, it has no head, or its head lacks some of the classes.
        """
        if self.weights is None:
            raise UserError(
                "there is no classifier to start from; set init.checkpoint=RUN, a run of "
                "python -m simmim.finetune, or its classifier.safetensors"
            )
        if self.weights.num_classes is None:
            raise UserError(
                f"{self.source} holds no classification head; fine-tune it first with "
                f"python -m simmim.finetune init.checkpoint={self.source}"
            )
        return head_rows(
            classes,
            outputs=self.weights.num_classes,
            known=self.weights.classes,
            source=str(self.source),
        )

    def create_classifier(
        self,
        rows: list[int],
        create: Callable[[SwinTransformer, int], HeadedEncoder] = Classifier,
    ) -> HeadedEncoder:
        """The encoder with these outputs of the file's head; logs which tensors were loaded.

        `create` adds a head with a number of outputs to an encoder.
        """
        assert self.weights is not None
        classifier = create(self._build(), len(rows))
        self._report(
            load_classifier_weights(
                classifier,
                self.weights.tensors,
                source=str(self.source),
                rows=rows,
                strict=self.strict,
                window_sizes=self.weights.window_sizes,
            )
        )
        say(f"its head is carried over: {len(rows)} of its {self.weights.num_classes} outputs")
        return classifier

    def describe_change(self) -> str:
        """What changes from the checkpoint: image size, windows by stage, position bias."""
        planned = self.planned
        before = None if self.weights is None else self.weights.description
        image, windows = show(planned.image_size), show_all(planned.window_sizes)
        if before is not None:
            old_image = show(as_pair(before["arguments"]["image_size"], "image_size"))
            image = f"{old_image} → {image}"
            windows = f"{show_all(before['window_sizes'])} → {windows}"
        bias = {
            "table": "tables interpolated bicubically",
            "linear_cpb": "linear-CPB evaluated",
            "log_cpb": "log-CPB evaluated",
        }[planned.position_bias]
        trained = show_all(planned.pretrained_window_sizes)
        if planned.position_bias != "table":
            bias += f" in units of the pretrained windows {trained}"
        return f"image {image}, windows by stage {windows}, position bias: {bias}"

    def _tell_windows(self, model: DictConfig) -> None:
        """Logs what is assumed if a file does not state the pretrained windows of its position bias."""
        known = self.weights is None or self.weights.pretrained_window_sizes is not None
        if known or model.pretrained_window_sizes is not None:
            return
        if self.planned.position_bias != "table":
            windows = self.planned.window_sizes
            say(
                f"{self.source} does not tell the windows that its position bias was trained with; "
                f"taken to be those of this model, {show_all(windows)}. If they were others, set "
                f"model.pretrained_window_sizes={[list(window) for window in windows]} to those"
            )

    def _build(self, **changes: Any) -> SwinTransformer:
        return instantiate(self._model, **(self._inherited | changes))

    def _report(self, coverage: Coverage) -> None:
        assert self.weights is not None
        say(f"from {self.source} ({self.weights.origin}): {coverage}")


def as_typed(value: object) -> str:
    """A value as it is typed in an option: `0.875`, `true`."""
    return str(value).lower()


def show_all(sizes: Sequence[Sequence[int]]) -> str:
    """Sizes in one line: `12 12 12 6`."""
    return " ".join(show(as_pair(size, "window")) for size in sizes)


def require_window(encoder: SwinTransformer) -> None:
    """Raises UserError for a window that is larger than the image has tokens.

    Later stages may have fewer: there the window shrinks, as in all published models.
    """
    tokens, window = encoder.feature_sizes[0], encoder.window_size
    if window[0] > tokens[0] or window[1] > tokens[1]:
        fitting = (min(window[0], tokens[0]), min(window[1], tokens[1]))
        stride = encoder.stride
        needed = [-(-side * encoder.patch_size // stride) * stride for side in window]
        raise UserError(
            f"window size {show(window)} is larger than the {tokens[0]}×{tokens[1]} tokens of a "
            f"{show(encoder.image_size)}-px image; use model.window_size={option(fitting)}, or "
            f"model.image_size={option((needed[0], needed[1]))} or more"
        )


def option(pair: Pair) -> str:
    """`8` or `[8,12]`, as it is typed."""
    return str(pair[0]) if pair[0] == pair[1] else f"[{pair[0]},{pair[1]}]"


def inherit(model: DictConfig, start: Weights | None) -> dict[str, Any]:
    """Arguments that a model takes over from the file that it starts from.

    `model=auto` takes the architecture; a named model takes the pretrained windows, without which a
    continuous position bias would have other values at another window.

    Raises:
        UserError: a named model's blocks compute differently, which equal shapes would hide.
    """
    described = None
    if start is not None and start.description is not None:
        described = start.description["arguments"]
    if "name" not in model:
        return {"arguments": described}
    if start is None:
        return {}
    with torch.device("meta"):
        named: SwinTransformer = instantiate(model)
    for switch in ("norm", "similarity", "position_bias"):
        mine = named.arguments[switch]
        theirs = mine if described is None else described[switch]
        if mine != theirs:
            raise UserError(
                f"model.{switch} is {mine} and the checkpoint was trained with {theirs}; "
                f"use model.{switch}={theirs}"
            )
    windows = start.pretrained_window_sizes
    stages = len(named.depths)
    if model.pretrained_window_sizes is not None or windows is None or len(windows) != stages:
        return {}
    return {"pretrained_window_sizes": windows}
