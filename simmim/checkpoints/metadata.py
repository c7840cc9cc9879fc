"""The description of an encoder in a file, enough to rebuild it."""

from typing import Any

from typing_extensions import NotRequired, TypedDict

from simmim.models.swin import SwinTransformer
from simmim.utils.held_out_crop import HeldOutCrop
from simmim.utils.normalization import Normalisation

FORMAT_VERSION = 1


class EncoderDescription(TypedDict):
    """The description of an encoder in a file, in JSON types."""

    format_version: int
    arguments: dict[str, Any]
    window_sizes: list[list[int]]
    mean: list[float]
    std: list[float]
    classes: NotRequired[list[str]]
    task: NotRequired[str]
    held_out_crop: NotRequired[HeldOutCrop]


def describe_encoder(encoder: SwinTransformer, normalisation: Normalisation) -> EncoderDescription:
    """The encoder's architecture, image size, windows by stage, and the normalisation of its input."""
    return {
        "format_version": FORMAT_VERSION,
        "arguments": encoder.arguments,
        "window_sizes": [list(window) for window in encoder.window_sizes],
        "mean": list(normalisation.mean),
        "std": list(normalisation.std),
    }


def is_description(value: Any) -> bool:
    """Whether the value is a description as `describe_encoder` returns, of any format version."""
    return isinstance(value, dict) and EncoderDescription.__required_keys__ <= value.keys()
