"""Activation checkpointing and sequential attention, which trade time for memory.

Swin Transformer V2 (arXiv 2111.09883), "Implementation to save GPU memory".
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from simmim.models.swin.tracing import is_traced
from simmim.utils.errors import UserError

# Which blocks are recomputed: none, all, or the number of leading blocks of each stage.
CheckpointBlocks = Literal["none", "all"] | Sequence[int]


def recompute(
    function: Callable[..., Tensor], *arguments: Tensor | None, is_random: bool = True
) -> Tensor:
    """Calls `function(*arguments)` with activation checkpointing: only the arguments are kept.

    With `is_random`, the RNG state is restored for the recomputation, so that it draws the same.
    """
    if is_traced() or not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=is_random)


def checkpointed_blocks(blocks: CheckpointBlocks, depths: Sequence[int]) -> tuple[int, ...]:
    """The number of blocks of each stage that are recomputed.

    Raises:
        UserError: an unknown word, or counts that are not one per stage and at most its depth.
    """
    named = {"none": (0,) * len(depths), "all": tuple(depths)}
    counts = named.get(blocks, ()) if isinstance(blocks, str) else tuple(blocks)
    if len(counts) != len(depths) or any(
        not 0 <= count <= depth for count, depth in zip(counts, depths, strict=True)
    ):
        raise UserError(
            f"model.checkpoint_blocks={_shown(blocks)} is neither none nor all nor a number of blocks "
            f"for each stage; use all, or at most {_shown(depths)}"
        )
    return counts


def windows_at_a_time(windows: int | Sequence[int], stages: int) -> tuple[int, ...]:
    """The number of windows that each stage computes attention for at a time (0: all).

    Raises:
        UserError: a negative number, or not one per stage.
    """
    by_stage = (windows,) * stages if isinstance(windows, int) else tuple(windows)
    if len(by_stage) != stages or min(by_stage) < 0:
        given = windows if isinstance(windows, int) else _shown(windows)
        example = _shown([1] * (stages // 2) + [0] * (stages - stages // 2))
        raise UserError(
            f"model.sequential_attention={given} is neither a number of windows nor one for each of "
            f"the {stages} stages; use 1, 0 for all at once, or e.g. {example}"
        )
    return by_stage


def _shown(counts: str | Sequence[int]) -> str:
    return counts if isinstance(counts, str) else f"[{','.join(map(str, counts))}]"
