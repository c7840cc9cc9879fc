"""Checkpoints: converters between simmim's weight names and those of other implementations."""

from simmim.checkpoints.formats.hugging_face import from_hf, to_hf
from simmim.checkpoints.formats.official import from_official, to_official
from simmim.checkpoints.formats.timm import from_timm, to_timm

__all__ = ["from_hf", "from_official", "from_timm", "to_hf", "to_official", "to_timm"]
