"""What a file says of its encoder, enough to build it again."""

from typing import Any

from typing_extensions import NotRequired, TypedDict

from simmim.models.swin import SwinTransformer
from simmim.utils.held_out_crop import HeldOutCrop
from simmim.utils.normalization import Normalisation

FORMAT_VERSION = 1


class EncoderDescription(TypedDict):
    """What a file says of its encoder, in JSON's types."""

    format_version: int
    arguments: dict[str, Any]
    window_sizes: list[list[int]]
    mean: list[float]
    std: list[float]
    classes: NotRequired[list[str]]
    held_out_crop: NotRequired[HeldOutCrop]


def describe_encoder(encoder: SwinTransformer, normalisation: Normalisation) -> EncoderDescription:
    """Architecture, image size, windows by stage, and the normalisation of its input."""
    return {
        "format_version": FORMAT_VERSION,
        "arguments": encoder.arguments,
        "window_sizes": [list(window) for window in encoder.window_sizes],
        "mean": list(normalisation.mean),
        "std": list(normalisation.std),
    }


def is_description(value: Any) -> bool:
    """Whether this is what `describe_encoder` gives, of any version."""
    return isinstance(value, dict) and EncoderDescription.__required_keys__ <= value.keys()
