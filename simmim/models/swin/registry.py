"""The published encoders by name, and `create_encoder` that builds one.

Sizes from Swin V2 (arXiv 2111.09883, section 3.5 and appendix), Swin V1 (arXiv 2103.14030, section
3.3) and the official configurations. `swinv2_nano` is ours, for CPUs and small pictures.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from simmim.models.swin.activation_checkpointing import CheckpointBlocks
from simmim.models.swin.attention import AttentionBackend, PositionBias, Similarity
from simmim.models.swin.model import SwinTransformer
from simmim.models.swin.patch_embed import Norm
from simmim.utils.errors import UserError
from simmim.utils.sizes import Size

_V1: dict[str, Any] = {"norm": "pre", "similarity": "dot", "position_bias": "table"}


def _family(embed_dim: int, depths: tuple[int, ...], **arguments: Any) -> dict[str, Any]:
    """Heads of 32 channels everywhere, as in all published sizes."""
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


def create_encoder(
    name: str,
    *,
    image_size: Size = 192,
    window_size: Size = 12,
    in_channels: int = 3,
    pretrained_window_sizes: Sequence[Size] | None = None,
    patch_size: int | None = None,
    embed_dim: int | None = None,
    depths: Sequence[int] | None = None,
    num_heads: Sequence[int] | None = None,
    norm: Norm | None = None,
    similarity: Similarity | None = None,
    position_bias: PositionBias | None = None,
    main_branch_norm_every: int | None = None,
    drop_path_rate: float = 0.0,
    attention_backend: AttentionBackend = "auto",
    checkpoint_blocks: CheckpointBlocks = "none",
    sequential_attention: int | Sequence[int] = 0,
) -> SwinTransformer:
    """Builds the named encoder; every argument that is not None replaces the name's own.

    Args:
        name: of `ARCHITECTURES`: `swinv2_{nano,t,s,b,l,h,g}`, `swin_{t,s,b,l}`.
        image_size: pixels, an int or `(height, width)`.
        window_size: tokens, an int or `(height, width)`.
        in_channels: of the images.
        pretrained_window_sizes: one a stage, the windows that a continuous position bias was
            trained with (None: the windows of this encoder).
        patch_size: pixels a side of what becomes one token of the first stage.
        embed_dim: channels of the first stage; each later stage has twice as many.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        norm: `res_post` (V2) or `pre` (V1).
        similarity: `cosine` (V2) or `dot` (V1).
        position_bias: `log_cpb` (V2), `linear_cpb` or `table` (V1).
        main_branch_norm_every: one more LayerNorm after every so many blocks (0: none).
        drop_path_rate: stochastic depth of the last block.
        attention_backend: as `SwinTransformer`'s.
        checkpoint_blocks: `none`, `all`, or how many blocks of each stage are computed again backward.
        sequential_attention: windows that attention is computed for at a time (0: all).

    Raises:
        UserError: an unknown name, or sizes that do not fit together.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"model name {name!r} is unknown; use one of {', '.join(ARCHITECTURES)}")
    changes = {
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depths": depths,
        "num_heads": num_heads,
        "norm": norm,
        "similarity": similarity,
        "position_bias": position_bias,
        "main_branch_norm_every": main_branch_norm_every,
    }
    arguments = ARCHITECTURES[name] | {
        key: value for key, value in changes.items() if value is not None
    }
    return SwinTransformer(
        image_size=image_size,
        window_size=window_size,
        in_channels=in_channels,
        pretrained_window_sizes=pretrained_window_sizes,
        drop_path_rate=drop_path_rate,
        attention_backend=attention_backend,
        checkpoint_blocks=checkpoint_blocks,
        sequential_attention=sequential_attention,
        **arguments,
    )


def adapt_encoder(
    arguments: Mapping[str, Any] | None = None,
    *,
    image_size: Size | None = None,
    window_size: Size | None = None,
    in_channels: int | None = None,
    pretrained_window_sizes: Sequence[Size] | None = None,
    drop_path_rate: float = 0.0,
    attention_backend: AttentionBackend = "auto",
    checkpoint_blocks: CheckpointBlocks = "none",
    sequential_attention: int | Sequence[int] = 0,
) -> SwinTransformer:
    """Builds an encoder from another's `arguments`, with what is not None here in their place.

    The windows that a continuous position bias was trained with are kept, so that it means the same
    at another window. Without arguments, `swinv2_nano` for 64-px images with windows of 8. All but
    `arguments` are as `SwinTransformer`'s: `image_size`, `window_size`, `in_channels`,
    `pretrained_window_sizes`, `drop_path_rate`, `attention_backend`, `checkpoint_blocks` and
    `sequential_attention`.
    """
    if arguments is None:
        arguments = ARCHITECTURES["swinv2_nano"] | {"image_size": 64, "window_size": 8}
    changes = {
        "image_size": image_size,
        "window_size": window_size,
        "in_channels": in_channels,
        "pretrained_window_sizes": pretrained_window_sizes,
    }
    return SwinTransformer(
        **{
            **arguments,
            **{name: value for name, value in changes.items() if value is not None},
            "drop_path_rate": drop_path_rate,
            "attention_backend": attention_backend,
            "checkpoint_blocks": checkpoint_blocks,
            "sequential_attention": sequential_attention,
        }
    )
