"""Hugging Face's weight names (github huggingface/transformers: models/swin, models/swinv2)."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from simmim.checkpoints.formats.key_mapping import (
    HEADS,
    WE_JOIN_THREE,
    Dialect,
    Rule,
    to_ours,
    to_theirs,
)

_OURS = "stages.{stage}.blocks.{block}"
_THEIRS = "encoder.layers.{stage}.blocks.{block}"
_OUR_LAYERS = ("attention.projection", "mlp.fc1", "mlp.fc2")


def _block_rules(
    query: str, key: str, value: str, table: str, layers: tuple[str, ...]
) -> tuple[Rule, ...]:
    """Rules for a block's weights: by the names in files or, since transformers 5, in V1's modules."""
    return (
        Rule(
            f"{_OURS}.attention.qkv.weight",
            tuple(f"{_THEIRS}.{part}.weight" for part in (query, key, value)),
            WE_JOIN_THREE,
        ),
        Rule(f"{_OURS}.attention.q_bias", f"{_THEIRS}.{query}.bias"),
        Rule(f"{_OURS}.attention.k_bias", f"{_THEIRS}.{key}.bias"),
        Rule(f"{_OURS}.attention.v_bias", f"{_THEIRS}.{value}.bias"),
        Rule(f"{_OURS}.attention.position_bias.table", f"{_THEIRS}.{table}"),
        *(
            Rule(f"{_OURS}.{ours}.{{parameter}}", f"{_THEIRS}.{theirs}.{{parameter}}")
            for ours, theirs in zip(_OUR_LAYERS, layers, strict=True)
        ),
    )


_V2 = Dialect(
    encoder=(
        Rule(
            "patch_embedding.projection.{parameter}",
            "embeddings.patch_embeddings.projection.{parameter}",
        ),
        Rule("patch_embedding.norm.{parameter}", "embeddings.norm.{parameter}"),
        *_block_rules(
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.self.relative_position_bias_table",
            ("attention.output.dense", "intermediate.dense", "output.dense"),
        ),
        *_block_rules(
            "attention.q_proj",
            "attention.k_proj",
            "attention.v_proj",
            "attention.relative_position_bias.relative_position_bias_table",
            ("attention.o_proj", "mlp.fc1", "mlp.fc2"),
        ),
        Rule(f"{_OURS}.attention.logit_scale", f"{_THEIRS}.attention.self.logit_scale", HEADS),
        *(
            Rule(
                f"{_OURS}.attention.position_bias.mlp.{layer}.{{parameter}}",
                f"{_THEIRS}.attention.self.continuous_position_bias_mlp.{layer}.{{parameter}}",
            )
            for layer in (0, 2)
        ),
        # In V2 these norms come after attention and MLP, despite their names.
        Rule(f"{_OURS}.norm1.{{parameter}}", f"{_THEIRS}.layernorm_before.{{parameter}}"),
        Rule(f"{_OURS}.norm2.{{parameter}}", f"{_THEIRS}.layernorm_after.{{parameter}}"),
        # Hugging Face has no norm3; under this name it stays with its block.
        Rule(f"{_OURS}.norm3.{{parameter}}", f"{_THEIRS}.norm3.{{parameter}}"),
        Rule(
            "stages.{next}.merging.reduction.weight",
            "encoder.layers.{stage}.downsample.reduction.weight",
        ),
        Rule(
            "stages.{next}.merging.norm.{parameter}",
            "encoder.layers.{stage}.downsample.norm.{parameter}",
        ),
        Rule("norm.{parameter}", "layernorm.{parameter}"),
    ),
    prefixes=("swinv2.", "swin."),
    classifier="classifier.{parameter}",
    classifier_prefix="swinv2.",
    mask_token="embeddings.mask_token",
    reconstruction="decoder.0",
    simmim_prefix="swinv2.",
)
_V1 = replace(_V2, classifier_prefix="swin.", simmim_prefix="swin.")


def from_hf(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames Hugging Face's V1 or V2 weights to simmim's: an encoder, a classifier, or SimMIM.

    The encoder's names may start with `swinv2.`, `swin.` or nothing; a classifier is recognised by
    `classifier`, SimMIM by `decoder.0` or `embeddings.mask_token`. For V1, the names of files and
    of modules, which differ since transformers 5, are both read. Derived tables are dropped; all
    other unknown names are kept.
    """
    return to_ours(weights, _V2)


def to_hf(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames simmim's weights to the names in Hugging Face's files: the inverse of `from_hf`.

    Load V1 with `from_pretrained`, which converts the files' names to the modules'.
    """
    is_v1 = any(name.endswith(".position_bias.table") for name in weights)
    return to_theirs(weights, _V1 if is_v1 else _V2)
