"""Window attention on a CPU, a few windows at a time: what they need stays in the core's cache.

Where the position bias is learned, PyTorch's attention on a CPU writes the weights of all pairs of
tokens to memory several times and keeps them for the backward pass. Here a chunk of windows goes
through normalisation, logits, softmax and sum before the next one does, and the backward pass computes
it again: nothing but queries, keys and values is kept.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits of one chunk, for each thread: with their gradients they fit a core's second-level cache.
_LOGIT_BYTES = 1024 * 1024
# On the meta device, where steps are planned and nothing is computed, larger chunks serve as well.
_PLANNED_CHUNKS = 2
# As torch.nn.functional.normalize has it.
_SMALLEST_NORM = 1e-12


def attend_in_chunks(
    qkv: Float[Tensor, "b windows tokens qkv_c"],
    bias: Float[Tensor, "heads tokens tokens"],
    mask: Bool[Tensor, "windows tokens tokens"] | None,
    factor: Float[Tensor, " heads"] | None,
) -> Float[Tensor, "b windows tokens c"]:
    """Attention within windows; pairs that are True in `mask` do not see each other.

    The logit is `cos(q, k) · factor + bias`, or `q · k / √d + bias` without a factor. Normalisation,
    bias and softmax are in float32, products of matrices in the type of `qkv`.
    """
    attended: Tensor = _ChunkedAttention.apply(qkv, bias, mask, factor)
    return attended


class _ChunkedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, bias: Tensor, mask: Tensor | None, factor: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(qkv, bias, mask, factor)
        batch, windows, tokens, channels = qkv.shape
        attended = qkv.new_empty(batch, windows, tokens, channels // 3)
        # Autocast would take the chunks' float32 for what it is to cast down.
        with torch.autocast("cpu", enabled=False):
            for images, places in _chunks(qkv, bias):
                chunk = _Chunk(qkv[images, places], bias, mask, places, factor)
                attended[images, places] = _join(chunk.weights.to(qkv.dtype) @ chunk.value)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        qkv, bias, mask, factor = ctx.saved_tensors
        qkv_gradient = torch.empty_like(qkv)
        wide = _wide(qkv)
        bias_gradient = torch.zeros_like(bias, dtype=wide)
        factor_gradient = None if factor is None else torch.zeros_like(factor, dtype=wide)
        # To what follows functions (`resources.tracing`), a backward pass is operators alone.
        with torch._C.DisableTorchFunction(), torch.autocast("cpu", enabled=False):
            for images, places in _chunks(qkv, bias):
                chunk = _Chunk(qkv[images, places], bias, mask, places, factor)
                chunk.backward(
                    gradient[images, places],
                    qkv_gradient[images, places],
                    bias_gradient,
                    factor_gradient,
                )
        if factor is not None and factor_gradient is not None:
            factor_gradient = factor_gradient.to(factor.dtype)
        return qkv_gradient, bias_gradient.to(bias.dtype), None, factor_gradient


class _Chunk:
    """Some windows' attention weights, and what their gradients need.

    Attributes:
        query, key: of length 1 where there is a factor, as in `qkv` where there is none.
        value: in the type of `qkv`, like the products.
        weights: of every pair of tokens, float32 or wider.
    """

    def __init__(
        self,
        qkv: Float[Tensor, "b windows tokens qkv_c"],
        bias: Float[Tensor, "heads tokens tokens"],
        mask: Bool[Tensor, "all_windows tokens tokens"] | None,
        places: slice,
        factor: Float[Tensor, " heads"] | None,
    ) -> None:
        heads = bias.shape[0]
        self.dtype, self.wide = qkv.dtype, _wide(qkv)
        self.has_factor = factor is not None
        parts = _split(qkv, heads).contiguous()
        directions, self.value = parts[:2].to(self.wide), parts[2]
        if factor is None:
            self.scale = qkv.new_full((heads, 1, 1), parts.shape[-1] ** -0.5, dtype=self.wide)
        else:
            self.scale = factor.view(-1, 1, 1)
            self.norms = directions.norm(dim=-1, keepdim=True).clamp_(min=_SMALLEST_NORM)
            directions = directions / self.norms
        self.directions = directions
        self.query, self.key = directions
        # The factor goes with the queries: they are fewer numbers than the pairs.
        self.scaled_query = (self.query * self.scale).to(self.dtype)
        self.low_key = self.key.to(self.dtype)
        logits = (self.scaled_query @ self.low_key.mT).to(self.wide)
        logits += bias
        if mask is not None:
            logits.masked_fill_(mask[places].unsqueeze(1), -torch.inf)
        self.weights = logits.softmax(dim=-1)

    def backward(
        self,
        gradient: Float[Tensor, "b windows tokens c"],
        qkv_gradient: Float[Tensor, "b windows tokens qkv_c"],
        bias_gradient: Float[Tensor, "heads tokens tokens"],
        factor_gradient: Float[Tensor, " heads"] | None,
    ) -> None:
        """Writes the gradient of queries, keys and values, and adds to the others."""
        heads = len(bias_gradient)
        of_output = gradient.reshape(*gradient.shape[:3], heads, -1).transpose(2, 3).contiguous()
        of_value = self.weights.to(self.dtype).mT @ of_output
        of_weights = (of_output @ self.value.mT).to(self.wide)
        of_logits = torch.ops.aten._softmax_backward_data(of_weights, self.weights, -1, self.wide)
        bias_gradient += of_logits.sum(dim=(0, 1))
        low = of_logits.to(self.dtype)
        of_scaled_query = (low @ self.low_key).to(self.wide)
        if factor_gradient is not None:
            factor_gradient += (of_scaled_query * self.query).sum(dim=(0, 1, 3, 4))
        of_directions = torch.stack(
            (of_scaled_query.mul_(self.scale), (low.mT @ self.scaled_query).to(self.wide))
        )
        if self.has_factor:
            along = (of_directions * self.directions).sum(dim=-1, keepdim=True)
            of_directions.addcmul_(self.directions, along, value=-1).div_(self.norms)
        parts = _split(qkv_gradient, heads)
        parts[:2] = of_directions
        parts[2] = of_value


def _wide(qkv: Tensor) -> torch.dtype:
    """What is computed beside products: float32, or float64 where that comes in."""
    return torch.promote_types(qkv.dtype, torch.float32)


def _chunks(qkv: Tensor, bias: Tensor) -> list[tuple[slice, slice]]:
    """Images and windows of each chunk: whole images, or some of one image's windows."""
    batch, windows = qkv.shape[:2]
    size = _LOGIT_BYTES * torch.get_num_threads() // (bias.numel() * 4)
    if qkv.is_meta:
        size = max(size, -(-batch * windows // _PLANNED_CHUNKS))
    images, places = max(1, size // windows), min(max(1, size), windows)
    return [
        (slice(image, image + images), slice(place, place + places))
        for image in range(0, batch, images)
        for place in range(0, windows, places)
    ]


def _split(
    qkv: Float[Tensor, "b windows tokens qkv_c"], heads: int
) -> Float[Tensor, "3 b windows heads tokens d"]:
    batch, windows, tokens, _ = qkv.shape
    return qkv.view(batch, windows, tokens, 3, heads, -1).permute(3, 0, 1, 4, 2, 5)


def _join(
    by_head: Float[Tensor, "b windows heads tokens d"],
) -> Float[Tensor, "b windows tokens c"]:
    return by_head.transpose(2, 3).flatten(3)
