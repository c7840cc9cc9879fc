"""Window attention as one fused Triton kernel: a PyTorch custom operator with gradients.

The kernels (`triton_kernels.py`) read queries, keys and values from the projection's output,
normalise them, and add the bias and the shift mask on the fly. The attention weights are never
stored in memory, not even in the backward pass. As an operator it works on the meta device, under
`torch.compile` and with PyTorch's FLOP counter.
"""

import importlib.util
import os
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from simmim.utils.errors import UserError

_OPTION = "model.attention_backend=triton"
_WAY_OUT = "use model.attention_backend=sdpa"
_WIDEST_HEAD = 128
_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def fused_attention(
    qkv: Float[Tensor, "b windows tokens c3"],
    bias: Float[Tensor, "heads tokens tokens"],
    mask: Bool[Tensor, "mask_windows tokens tokens"] | None,
    factor: Float[Tensor, " heads"] | None,
    regions: Int[Tensor, "mask_windows tokens"] | None = None,
) -> Float[Tensor, "b windows tokens c"]:
    """`softmax(similarity(q, k) · factor + bias) · v` per window, in float32 except for the products.

    Args:
        qkv: queries, keys and values, concatenated along channels, each split by head.
        bias: the position bias of each head, shared by all windows.
        mask: as from `windows.attention_mask`, True where two tokens must not attend to each other;
            the tokens of a window form groups, and attend within their own group.
        factor: the scale of each head's cosines; None: the similarity is the dot product over √d.
        regions: `regions_of(mask)`, if already computed.

    Raises:
        UserError: a device or dtype that the kernels do not support.
    """
    if qkv.dtype not in _TYPES:
        raise UserError(
            f"{_OPTION} computes in float32, bfloat16 or float16, not in {qkv.dtype}; {_WAY_OUT}"
        )
    batch, count, tokens, channels = qkv.shape
    heads = bias.shape[0]
    apart = qkv.reshape(batch * count, tokens, 3, heads, channels // (3 * heads))
    if regions is None and mask is not None:
        regions = regions_of(mask)
    attended, _ = _attend(apart, bias.float(), factor, regions)
    return attended.view(batch, count, tokens, channels // 3)


def regions_of(mask: Bool[Tensor, "windows tokens tokens"]) -> Int[Tensor, "windows tokens"]:
    """Equal numbers for tokens that attend to each other: the first token that each one attends to."""
    # Not argmin: with ties, the index it returns is not defined under torch.compile.
    tokens = torch.arange(mask.shape[-1], device=mask.device)
    return torch.where(mask, mask.shape[-1], tokens).amin(dim=-1)


def require_head_dim(head_dim: int) -> None:
    """Raises UserError if heads are wider than the kernels support."""
    if head_dim > _WIDEST_HEAD:
        raise UserError(
            f"{_OPTION} takes heads of at most {_WIDEST_HEAD} channels, not of {head_dim}; "
            f"use more heads, or model.attention_backend=sdpa"
        )


@cache
def require_device(device: torch.device) -> None:
    """Raises UserError if the kernels do not run on this device."""
    if importlib.util.find_spec("triton") is None:
        raise UserError(f'{_OPTION} needs Triton; pip install "simmim[triton]", or {_WAY_OUT}')
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    if device.type != "cuda":
        raise UserError(f"{_OPTION} runs on CUDA GPUs, not on {device.type}; {_WAY_OUT}")
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < (8, 0):
        raise UserError(
            f"{_OPTION} needs a GPU of compute capability 8.0 (Ampere) or more, not "
            f"{capability[0]}.{capability[1]}; {_WAY_OUT}"
        )


@torch.library.custom_op("simmim::window_attention", mutates_args=())
def _attend(
    qkv: Tensor, bias: Tensor, factor: Tensor | None, regions: Tensor | None
) -> tuple[Tensor, Tensor]:
    require_device(qkv.device)
    from simmim.models.swin.kernels.triton_launch import attend_forward

    return attend_forward(qkv.contiguous(), bias.contiguous(), factor, regions)


@torch.library.custom_op("simmim::window_attention_backward", mutates_args=())
def _attend_backward(
    gradient: Tensor,
    qkv: Tensor,
    bias: Tensor,
    factor: Tensor | None,
    regions: Tensor | None,
    attended: Tensor,
    log_sums: Tensor,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from simmim.models.swin.kernels.triton_launch import attend_backward

    qkv_gradient, bias_gradient, factor_gradient = attend_backward(
        gradient.contiguous(),
        qkv.contiguous(),
        bias.contiguous(),
        factor,
        regions,
        attended,
        log_sums,
        needs_bias,
    )
    # An operator must return tensors: an empty one means no gradient.
    none = bias.new_empty(0)
    return (
        qkv_gradient,
        none if bias_gradient is None else bias_gradient,
        none.clone() if factor_gradient is None else factor_gradient,
    )


@_attend.register_fake
def _(
    qkv: Tensor, bias: Tensor, factor: Tensor | None, regions: Tensor | None
) -> tuple[Tensor, Tensor]:
    windows, tokens, _, heads, head_dim = qkv.shape
    return (
        qkv.new_empty(windows, tokens, heads, head_dim),
        qkv.new_empty(windows, heads, tokens, dtype=torch.float32),
    )


@_attend_backward.register_fake
def _(
    gradient: Tensor,
    qkv: Tensor,
    bias: Tensor,
    factor: Tensor | None,
    regions: Tensor | None,
    attended: Tensor,
    log_sums: Tensor,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        qkv.new_empty(qkv.shape),
        bias.new_empty(bias.shape if needs_bias else 0),
        bias.new_empty(0 if factor is None else factor.shape),
    )


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    _, needs_bias, needs_factor, _ = ctx.needs_input_grad
    qkv_gradient, bias_gradient, factor_gradient = _attend_backward(
        gradient, *ctx.saved_tensors, needs_bias
    )
    return (
        qkv_gradient,
        bias_gradient if needs_bias else None,
        factor_gradient if needs_factor else None,
        None,
    )


_attend.register_autograd(_backward, setup_context=_save)

# The operator that autograd calls in the backward pass, for code that intercepts calls.
BACKWARD_OPERATOR = torch.ops.simmim.window_attention_backward.default


def _product_flops(qkv_shape: torch.Size) -> int:
    windows, tokens, _, heads, head_dim = qkv_shape
    return 2 * windows * heads * tokens * tokens * head_dim


@register_flop_formula(torch.ops.simmim.window_attention)
def _forward_flops(qkv_shape: torch.Size, *others: Any, **named: Any) -> int:
    return 2 * _product_flops(qkv_shape)


@register_flop_formula(torch.ops.simmim.window_attention_backward)
def _backward_flops(
    gradient_shape: torch.Size, qkv_shape: torch.Size, *others: Any, **named: Any
) -> int:
    """Recomputation of the logits and four gradient products, as PyTorch counts its own kernels."""
    return 5 * _product_flops(qkv_shape)
