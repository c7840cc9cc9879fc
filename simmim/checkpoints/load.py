"""Loads weights into a model strictly: every tensor is accounted for by name."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from simmim.models.classifier import HeadedEncoder
from simmim.models.swin import SwinTransformer
from simmim.models.swin.position_bias import resize_table
from simmim.utils.errors import UserError
from simmim.utils.sizes import Pair, as_pair

_LISTED = 8
_OF_BLOCKS = re.compile(r"stages\.\d+\.(blocks|merging)\.")


class Initialisation(NamedTuple):
    """The weights a model starts from (None: random ones), and whether all must be there."""

    checkpoint: str | None
    strict: bool = True


class Coverage(NamedTuple):
    """Names of loaded, reshaped, missing and unexpected tensors; `reshaped` ones are loaded too."""

    loaded: tuple[str, ...]
    reshaped: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        """`178 tensors loaded, 2 of them reshaped (…), 0 missing, 1 unexpected (…)`."""
        return (
            f"{len(self.loaded)} tensors loaded, {len(self.reshaped)} of them reshaped"
            f"{_listed(self.reshaped)}, {len(self.missing)} missing{_listed(self.missing)}, "
            f"{len(self.unexpected)} unexpected{_listed(self.unexpected)}"
        )


def load_encoder_weights(
    encoder: SwinTransformer,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    strict: bool = True,
    window_sizes: Sequence[Sequence[int]] | None = None,
) -> Coverage:
    """Loads an encoder's weights, fitted to its windows and input channels, and reports on each.

    Position-bias tables of another window are interpolated bicubically; a patch embedding of
    another number of channels is summed or repeated (`adapt_channels`). Nothing else may differ in
    shape. `window_sizes` are the `(height, width)` that the tables were trained with, by stage
    (None: squares); `source` is the file's name in messages.

    Raises:
        UserError: a shape that differs or, if `strict`, a missing tensor of the encoder, or a
            tensor of a block that it does not have.
    """
    fitted, coverage = match_weights(
        encoder, tensors, source=source, strict=strict, window_sizes=window_sizes
    )
    encoder.load_state_dict(fitted, strict=False)
    return coverage


def match_weights(
    encoder: SwinTransformer,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    strict: bool = True,
    window_sizes: Sequence[Sequence[int]] | None = None,
) -> tuple[dict[str, Tensor], Coverage]:
    """The tensors in the encoder's shapes, and a report; the encoder may be on the meta device.

    Raises:
        UserError: as `load_encoder_weights`.
    """
    own = encoder.state_dict()
    fitted = {
        name: fit(name, tensors[name], own[name], encoder, window_sizes)
        for name in own
        if name in tensors
    }
    misfits = [name for name, tensor in fitted.items() if tensor.shape != own[name].shape]
    if misfits:
        shapes = ", ".join(
            f"{name} {_shape(tensors[name])} in the file, {_shape(own[name])} in the model"
            for name in misfits[:3]
        )
        more = f" and {len(misfits) - 3} more" if len(misfits) > 3 else ""
        raise UserError(
            f"{source} holds another architecture: {shapes}{more}; "
            "set model= to the one that it was trained with"
        )
    coverage = Coverage(
        loaded=tuple(fitted),
        reshaped=tuple(name for name in fitted if fitted[name] is not tensors[name]),
        missing=tuple(name for name in own if name not in tensors),
        unexpected=tuple(name for name in tensors if name not in own),
    )
    if strict and coverage.missing:
        raise UserError(
            f"{source} lacks {len(coverage.missing)} of the encoder's {len(own)} tensors"
            f"{_listed(coverage.missing)}; set model= to the architecture that it was trained with, "
            "or, in training, init.strict=false to leave them at their initial values"
        )
    # An encoder with fewer blocks or norms finds all its tensors in a larger one, but is not the
    # same.
    homeless = tuple(name for name in coverage.unexpected if _OF_BLOCKS.match(name))
    if strict and homeless:
        raise UserError(
            f"{source} holds {len(homeless)} tensors of blocks that the encoder does not have"
            f"{_listed(homeless)}; set model= to the architecture that it was trained with, or, in "
            "training, init.strict=false to leave them out"
        )
    return fitted, coverage


def load_classifier_weights(
    classifier: HeadedEncoder,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    rows: Sequence[int] | None = None,
    strict: bool = True,
    window_sizes: Sequence[Sequence[int]] | None = None,
) -> Coverage:
    """Loads a model with a head: its encoder as `load_encoder_weights` does, and its head.

    `rows` has, for each of the model's outputs, the index in the file's head (None: the same);
    `source`, `strict` and `window_sizes` are as in `load_encoder_weights`.

    Raises:
        UserError: as `load_encoder_weights`.
    """
    encoder = {
        name.removeprefix("encoder."): tensor
        for name, tensor in tensors.items()
        if name.startswith("encoder.")
    }
    own = [f"head.{name}" for name in classifier.head.state_dict()]
    if missing := [name for name in own if name not in tensors]:
        raise UserError(f"{source} lacks {', '.join(missing)}; give a whole classifier")
    coverage = load_encoder_weights(
        classifier.encoder, encoder, source=source, strict=strict, window_sizes=window_sizes
    )
    head = {name: tensors[f"head.{name}"] for name in classifier.head.state_dict()}
    if rows is not None:
        head = {name: tensor[list(rows)] for name, tensor in head.items()}
    classifier.head.load_state_dict(head)
    others = [name for name in tensors if not name.startswith("encoder.") and name not in own]
    return coverage._replace(
        loaded=(*coverage.loaded, *own), unexpected=(*coverage.unexpected, *others)
    )


def fit(
    name: str,
    tensor: Tensor,
    own: Tensor,
    encoder: SwinTransformer,
    window_sizes: Sequence[Sequence[int]] | None,
) -> Tensor:
    """The tensor fitted to the shape of the encoder's `own`, if there is a way; else unchanged."""
    if table := re.match(r"stages\.(\d+)\..*position_bias\.table$", name):
        if window_sizes is None and tensor.shape == own.shape:
            return tensor
        stage = int(table[1])
        trained = (
            square_window(tensor) if window_sizes is None else as_pair(window_sizes[stage], name)
        )
        return resize_table(tensor, trained, encoder.window_sizes[stage])
    is_projection = name == "patch_embedding.projection.weight"
    if is_projection and tensor.shape != own.shape and tensor.shape[2:] == own.shape[2:]:
        return adapt_channels(tensor, own.shape[1])
    return tensor


def square_window(table: Float[Tensor, "offsets heads"]) -> Pair | None:
    """The square window with this number of relative offsets; None if there is none."""
    side = math.isqrt(table.shape[0])
    return ((side + 1) // 2, (side + 1) // 2) if side**2 == table.shape[0] and side % 2 else None


def adapt_channels(
    kernel: Float[Tensor, "c old h w"], in_channels: int
) -> Float[Tensor, "c new h w"]:
    """A patch embedding for another number of input channels.

    Old channels are summed (for one channel) or repeated and scaled, so that activations keep their
    scale.
    """
    old = kernel.shape[1]
    if in_channels == 1:
        return kernel.sum(dim=1, keepdim=True)
    repeated = kernel[:, torch.arange(in_channels) % old]
    return repeated * (old / in_channels)


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def _listed(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f" ({', '.join(names[:_LISTED])}{more})"
