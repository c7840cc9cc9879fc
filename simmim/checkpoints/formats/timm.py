"""timm's weight names (github huggingface/pytorch-image-models: timm/models/swin_transformer*.py)."""

from collections.abc import Mapping

from torch import Tensor

from simmim.checkpoints.formats.key_mapping import Dialect, Rule, to_ours, to_theirs
from simmim.checkpoints.formats.official import COMMON_RULES, from_official

_DIALECT = Dialect(
    encoder=(
        *COMMON_RULES,
        Rule("stages.{next}.merging.reduction.weight", "layers.{next}.downsample.reduction.weight"),
        Rule("stages.{next}.merging.norm.{parameter}", "layers.{next}.downsample.norm.{parameter}"),
    ),
    prefixes=(),
    classifier="head.fc.{parameter}",
)


def from_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames timm's V1 or V2 weights to simmim's: an encoder or, with `head.fc`, a classifier.

    timm's `downsample` belongs to the stage after it, as in simmim. Older weights, where it
    belonged to the stage before, have the official names and are read as such. Derived tables are
    dropped; all other unknown names are kept.
    """
    if any(name.startswith("layers.0.downsample.") for name in weights):
        return from_official(weights)
    return to_ours(weights, _DIALECT)


def to_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames simmim's weights to timm's: the inverse of `from_timm`.

    timm has no SimMIM: of a SimMIM model, the encoder is renamed, mask token and head are kept.
    """
    return to_theirs(weights, _DIALECT)
