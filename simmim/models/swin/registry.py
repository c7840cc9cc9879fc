"""The published encoders by name, and `create_encoder` to build one.

Sizes from Swin V2 (arXiv 2111.09883, section 3.5 and appendix), Swin V1 (arXiv 2103.14030, section
3.3) and the official configurations. `swinv2_nano` is our own, for CPUs and small images.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from typing_extensions import Unpack

from simmim.models.swin.activation_checkpointing import CheckpointBlocks
from simmim.models.swin.attention import AttentionBackend, PositionBias, Similarity
from simmim.models.swin.model import SwinTransformer
from simmim.models.swin.patch_embed import Norm
from simmim.utils.errors import UserError
from simmim.utils.sizes import Size

_V1: dict[str, Any] = {"norm": "pre", "similarity": "dot", "position_bias": "table"}


def _family(embed_dim: int, depths: tuple[int, ...], **arguments: Any) -> dict[str, Any]:
    """The arguments of one size; heads have 32 channels, as in all published sizes."""
    num_heads = tuple(embed_dim * 2**stage // 32 for stage in range(len(depths)))
    return {"embed_dim": embed_dim, "depths": depths, "num_heads": num_heads, **arguments}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "swinv2_nano": _family(64, (4, 2), patch_size=8),
    "swinv2_t": _family(96, (2, 2, 6, 2)),
    "swinv2_s": _family(96, (2, 2, 18, 2)),
    "swinv2_b": _family(128, (2, 2, 18, 2)),
    "swinv2_l": _family(192, (2, 2, 18, 2)),
    "swinv2_h": _family(352, (2, 2, 18, 2), main_branch_norm_every=6),
    "swinv2_g": _family(512, (2, 2, 42, 4), main_branch_norm_every=6),
    "swin_t": _family(96, (2, 2, 6, 2), **_V1),
    "swin_s": _family(96, (2, 2, 18, 2), **_V1),
    "swin_b": _family(128, (2, 2, 18, 2), **_V1),
    "swin_l": _family(192, (2, 2, 18, 2), **_V1),
}


class EncoderOptions(TypedDict, total=False):
    """Arguments of `SwinTransformer`; missing or None keeps the architecture's own value."""

    image_size: Size | None
    window_size: Size | None
    in_channels: int | None
    pretrained_window_sizes: Sequence[Size] | None
    patch_size: int | None
    embed_dim: int | None
    depths: Sequence[int] | None
    num_heads: Sequence[int] | None
    norm: Norm | None
    similarity: Similarity | None
    position_bias: PositionBias | None
    main_branch_norm_every: int | None
    drop_path_rate: float | None
    attention_backend: AttentionBackend | None
    checkpoint_blocks: CheckpointBlocks | None
    sequential_attention: int | Sequence[int] | None


def create_encoder(name: str, **options: Unpack[EncoderOptions]) -> SwinTransformer:
    """Builds the named encoder, by default for 192-px images with windows of 12.

    Args:
        name: a key of `ARCHITECTURES`: `swinv2_{nano,t,s,b,l,h,g}`, `swin_{t,s,b,l}`.
        options: arguments of `SwinTransformer` that override the architecture's own.

    Raises:
        UserError: an unknown name, or sizes that do not fit together.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"model name {name!r} is unknown; use one of {', '.join(ARCHITECTURES)}")
    return _build({"image_size": 192, "window_size": 12} | ARCHITECTURES[name], options)


def adapt_encoder(
    arguments: Mapping[str, Any] | None = None, **options: Unpack[EncoderOptions]
) -> SwinTransformer:
    """Builds an encoder from another one's `arguments`, overridden by the given options.

    The pretrained window sizes are kept, so that a continuous position bias keeps its meaning at
    another window; the drop path rate, which belongs to the training run, is reset to 0. Without
    `arguments`, starts from `swinv2_nano` for 64-px images with windows of 8.
    """
    if arguments is None:
        arguments = ARCHITECTURES["swinv2_nano"] | {"image_size": 64, "window_size": 8}
    return _build({**arguments, "drop_path_rate": 0.0}, options)


def _build(arguments: Mapping[str, Any], options: EncoderOptions) -> SwinTransformer:
    given = {name: value for name, value in options.items() if value is not None}
    return SwinTransformer(**{**arguments, **given})
