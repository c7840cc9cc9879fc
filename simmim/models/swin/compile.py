"""Compiled blocks: `torch.compile` block by block, so that blocks that are alike are compiled once.

A whole encoder takes as long to compile as it is deep. By blocks, a stage has two kinds (shifted
and not) or few more, whatever its depth.
"""

from typing import Any, Literal, get_args

import torch

from simmim.models.swin.blocks import Stage
from simmim.models.swin.model import SwinTransformer
from simmim.utils.errors import UserError

# none, or a mode of torch.compile; reduce-overhead: CUDA graphs.
Compile = Literal["none", "default", "reduce-overhead"]

# A stage's kinds of blocks: shifted or not, with or without drop path and the main branch's norm; in
# training, in validation, with and without gradients.
_KINDS_A_STAGE = 16


def check_compile(mode: Compile, accumulation: int = 1) -> None:
    """Raises UserError for an unknown mode, or CUDA graphs that are not to be had."""
    if mode not in get_args(Compile):
        raise UserError(f"compile={mode} is unknown; use {' or '.join(get_args(Compile))}")
    if mode == "reduce-overhead" and accumulation > 1:
        # The next batch's backward pass would write over the gradients that are being summed up.
        raise UserError(
            f"compile={mode} keeps gradients in the memory of its CUDA graphs for one batch, and "
            f"trainer.accumulate_grad_batches is {accumulation}; use compile=default"
        )
    if mode == "reduce-overhead" and not torch.cuda.is_available():
        raise UserError(f"compile={mode} records CUDA graphs, and there is no GPU; use default")


def compile_blocks(encoder: SwinTransformer, mode: Compile, **options: Any) -> None:
    """Compiles each block when it first runs; names of weights and checkpoints stay as they are.

    Args:
        encoder: compiled in place.
        mode: `none` leaves it as it is.
        options: of `torch.compile`.
    """
    check_compile(mode)
    if mode == "none":
        return
    # All blocks share one function's cache, whose limit is meant for one module.
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _KINDS_A_STAGE * len(encoder.depths))
    # As without a compiler: a backward pass would be compiled under the autocast that its forward pass
    # left, as the position bias does.
    torch._functorch.config.backward_pass_autocast = "off"
    if mode == "reduce-overhead":
        # CUDA graphs' memory is taken anew with each call of a compiled function, unless a step is said
        # to go on: a block would lose its input, which is the output of the one before.
        encoder.patch_embedding.register_forward_pre_hook(_begin_step)
    for stage in encoder.stages:
        assert isinstance(stage, Stage)
        for block in stage.blocks:
            # Stages differ in all sizes: code for any size would be slower, and serve none better.
            block.compile(mode=None if mode == "default" else mode, dynamic=False, **options)


def _begin_step(*_: Any) -> None:
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
