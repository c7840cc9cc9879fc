"""GELU for compiled CPU training: saves its derivative, so that backward is one multiplication.

By default the compiler saves GELU's input, and evaluates the error function and another exponential
in the backward pass. Here the value and the derivative share one exponential.
"""

import math
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: erf to within 1.5e-7.
_REACH = 0.3275911
_COEFFICIENTS = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def gelu_after(
    product: Float[Tensor, "*rows c"], bias: Float[Tensor, " c"]
) -> Float[Tensor, "*rows c"]:
    """GELU of `product + bias`, with an error of at most 2e-7 per unit of input, or of rounding.

    Its backward pass multiplies by the derivative, rounded to the dtype of `product`.
    """
    return _gelu_and_slope(product, bias)[0]


@torch.library.custom_op("simmim::gelu_and_slope", mutates_args=())
def _gelu_and_slope(product: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    # A custom operator: if it saw the formulas, the compiler would save the input again.
    return _compile()(product, bias)


@_gelu_and_slope.register_fake
def _(product: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(product), torch.empty_like(product)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.bias_dtype = inputs[1].dtype


def _use_kept(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, Tensor]:
    (slope,) = ctx.saved_tensors
    of_hidden = gradient * slope
    return of_hidden, of_hidden.flatten(0, -2).sum(dim=0, dtype=ctx.bias_dtype)


_gelu_and_slope.register_autograd(_use_kept, setup_context=_keep)


@cache
def _compile() -> Any:
    return torch.compile(_compute, dynamic=False)


def _compute(product: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """`x · Φ(x)` and `Φ(x) + x · φ(x)`, where Φ is the normal CDF and φ its density."""
    hidden = (product + bias.to(product.dtype)).to(
        torch.promote_types(product.dtype, torch.float32)
    )
    exponential = torch.exp(-0.5 * hidden.square())
    near = 1 / (1 + _REACH * math.sqrt(0.5) * hidden.abs())
    polynomial = torch.zeros_like(near)
    for coefficient in reversed(_COEFFICIENTS):
        polynomial = near * (coefficient + polynomial)
    beyond = 0.5 * polynomial * exponential
    below = torch.where(hidden > 0, 1 - beyond, beyond)
    density = exponential / math.sqrt(2 * math.pi)
    return (hidden * below).to(product.dtype), (below + hidden * density).to(product.dtype)
