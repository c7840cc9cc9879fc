"""The official weight names (github microsoft/Swin-Transformer: models/).

SatVision-TOA (github nasa-nccs-hpda/pytorch-caney) has the same names, and `norm3` in some blocks.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from simmim.checkpoints.formats.key_mapping import (
    HEADS,
    WE_SPLIT_IN_THREE,
    Dialect,
    Rule,
    to_ours,
    to_theirs,
)

_OURS = "stages.{stage}.blocks.{block}"
_THEIRS = "layers.{stage}.blocks.{block}"

# All rules but patch merging's: timm uses the same names, but puts merging into another stage.
COMMON_RULES = (
    Rule("patch_embedding.projection.{parameter}", "patch_embed.proj.{parameter}"),
    Rule("patch_embedding.norm.{parameter}", "patch_embed.norm.{parameter}"),
    Rule(f"{_OURS}.attention.qkv.weight", f"{_THEIRS}.attn.qkv.weight"),
    # V1 has one bias for query, key and value; in V2 the key has none.
    Rule(
        tuple(f"{_OURS}.attention.{part}_bias" for part in "qkv"),
        f"{_THEIRS}.attn.qkv.bias",
        WE_SPLIT_IN_THREE,
    ),
    Rule(f"{_OURS}.attention.q_bias", f"{_THEIRS}.attn.q_bias"),
    Rule(f"{_OURS}.attention.v_bias", f"{_THEIRS}.attn.v_bias"),
    Rule(f"{_OURS}.attention.logit_scale", f"{_THEIRS}.attn.logit_scale", HEADS),
    Rule(f"{_OURS}.attention.projection.{{parameter}}", f"{_THEIRS}.attn.proj.{{parameter}}"),
    *(
        Rule(
            f"{_OURS}.attention.position_bias.mlp.{layer}.{{parameter}}",
            f"{_THEIRS}.attn.{network}.{layer}.{{parameter}}",
        )
        # Some SwinV2 files still have the older name (microsoft/Swin-Transformer#271).
        for network in ("cpb_mlp", "rpe_mlp")
        for layer in (0, 2)
    ),
    Rule(f"{_OURS}.attention.position_bias.table", f"{_THEIRS}.attn.relative_position_bias_table"),
    *(
        Rule(f"{_OURS}.{layer}.{{parameter}}", f"{_THEIRS}.{layer}.{{parameter}}")
        for layer in ("norm1", "norm2", "norm3", "mlp.fc1", "mlp.fc2")
    ),
    Rule("norm.{parameter}", "norm.{parameter}"),
)

_DIALECT = Dialect(
    encoder=(
        *COMMON_RULES,
        Rule(
            "stages.{next}.merging.reduction.weight", "layers.{stage}.downsample.reduction.weight"
        ),
        Rule(
            "stages.{next}.merging.norm.{parameter}", "layers.{stage}.downsample.norm.{parameter}"
        ),
    ),
    prefixes=("encoder.",),
    classifier="head.{parameter}",
    mask_token="mask_token",
    reconstruction="decoder.0",
    simmim_prefix="encoder.",
)


def from_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames official V1 or V2 weights to simmim's: an encoder, a classifier, or SimMIM.

    SimMIM is recognised by `encoder.mask_token` or `decoder.0`, a classifier by `head`. `rpe_mlp`
    is read as `cpb_mlp`; `relative_coords_table`, `relative_position_index` and `attn_mask` are
    dropped, because they follow from the window. All other unknown names are kept.
    """
    return to_ours(weights, _DIALECT)


def to_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames simmim's weights to the official names: the inverse of `from_official`.

    The official models compute derived tables themselves; load with `strict=False`.
    """
    return to_theirs(weights, _DIALECT)


def pretrained_windows(weights: Mapping[str, Tensor]) -> list[list[int]] | None:
    """The pretrained window `[height, width]` of each stage; None without coordinate tables.

    Official V2 files hold each block's table of relative coordinates, 2 · window − 1 per side. Its
    largest value is log2(1 + 8 · (window − 1) / (pretrained − 1)) / 3 (Swin V2, section 3.3).
    """
    windows: dict[int, list[int]] = {}
    for name, table in weights.items():
        stage = re.search(r"layers\.(\d+)\.blocks\.\d+\.attn\.relative_coords_table$", name)
        if stage is None or table.ndim != 4:
            continue
        largest = table[0, -1, -1].double()
        sides = []
        for side, value in zip(table.shape[1:3], largest.tolist(), strict=True):
            reach = (2 ** (3 * value) - 1) / 8
            sides.append(1 + round((side - 1) / 2 / reach) if reach > 0 else (side + 1) // 2)
        windows[int(stage[1])] = sides
    if not windows or sorted(windows) != list(range(len(windows))):
        return None
    return [windows[stage] for stage in range(len(windows))]
