"""Regional compilation: `torch.compile` per block, so that blocks of a kind are compiled once.

The time to compile a whole encoder grows with its depth. Per block, a stage has two kinds (shifted
and not) or a few more, whatever its depth.
"""

from typing import Any, Literal, get_args

import torch

from simmim.models.swin.blocks import Stage
from simmim.models.swin.model import SwinTransformer
from simmim.utils.errors import UserError

# none, or a mode of torch.compile; reduce-overhead uses CUDA graphs.
Compile = Literal["none", "default", "reduce-overhead"]

# Upper bound on the variants of a block per stage: shifted or not, with or without drop path and
# the main branch norm; in training and validation, with and without gradients.
_KINDS_A_STAGE = 16


def check_compile(mode: Compile, accumulation: int = 1) -> None:
    """Raises UserError for an unknown mode, or if CUDA graphs cannot be used."""
    if mode not in get_args(Compile):
        raise UserError(f"compile={mode} is unknown; use {' or '.join(get_args(Compile))}")
    if mode == "reduce-overhead" and accumulation > 1:
        # The next batch's backward pass would overwrite the gradients being accumulated.
        raise UserError(
            f"compile={mode} keeps gradients in the memory of its CUDA graphs for one batch, and "
            f"trainer.accumulate_grad_batches is {accumulation}; use compile=default"
        )
    if mode == "reduce-overhead" and not torch.cuda.is_available():
        raise UserError(f"compile={mode} records CUDA graphs, and there is no GPU; use default")


def compile_blocks(encoder: SwinTransformer, mode: Compile, **options: Any) -> None:
    """Compiles each block on its first run; parameter names and checkpoints do not change.

    Args:
        encoder: compiled in place.
        mode: `none` leaves the encoder uncompiled.
        options: passed to `torch.compile`.
    """
    check_compile(mode)
    if mode == "none":
        return
    # All blocks share one function's cache, but its limit is meant for a single module.
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _KINDS_A_STAGE * len(encoder.depths))
    # As in eager mode. Otherwise the backward pass is compiled under the autocast state of the
    # forward pass, also where the forward pass disables autocast, as the position bias does.
    torch._functorch.config.backward_pass_autocast = "off"
    if mode == "reduce-overhead":
        # CUDA graphs reuse their memory at each call of a compiled function unless the start of a
        # step is marked: a block would lose its input, which is the output of the previous block.
        encoder.patch_embedding.register_forward_pre_hook(_begin_step)
    for stage in encoder.stages:
        assert isinstance(stage, Stage)
        for block in stage.blocks:
            # Stages differ in all sizes: code for dynamic shapes would only be slower.
            block.compile(mode=None if mode == "default" else mode, dynamic=False, **options)


def _begin_step(*_: Any) -> None:
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
