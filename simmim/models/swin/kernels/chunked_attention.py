"""Window attention on a CPU, a few windows at a time, so that intermediates stay in the cache.

With a learned position bias, PyTorch's CPU attention makes several passes through memory over the
attention weights of all windows and keeps more than one copy of them. Here each chunk of windows
goes through normalisation, logits, softmax and weighted sum before the next one. It saves for
backward one copy of the weights, and queries, keys and values as the products take them: nothing is
recomputed.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# Bytes of logits per chunk and thread: with their gradients they fit its share of the L3 cache.
_LOGIT_BYTES = 2 * 1024 * 1024
# Number of chunks on the meta device, where steps are only planned: a few large ones suffice.
_PLANNED_CHUNKS = 2
# As in torch.nn.functional.normalize.
_SMALLEST_NORM = 1e-12


def attend_in_chunks(
    qkv: Float[Tensor, "b windows tokens qkv_c"],
    bias: Float[Tensor, "heads tokens tokens"],
    mask: Bool[Tensor, "windows tokens tokens"] | None,
    factor: Float[Tensor, " heads"] | None,
) -> Float[Tensor, "b windows tokens c"]:
    """Attention within windows; pairs that are True in `mask` do not attend to each other.

    The logit is `cos(q, k) · factor + bias`, or `q · k / √d + bias` without a factor. Normalisation,
    bias and softmax are in float32, matrix products in the dtype of `qkv`.

    Under `torch.compile` it is a custom operator that compiles the computation of a single chunk;
    compiled code would otherwise process all windows at once.
    """
    if torch.compiler.is_compiling():
        return _compiled_attention(qkv, bias, mask, factor)[0]
    attended: Tensor = _ChunkedAttention.apply(qkv, bias, mask, factor)
    return attended


class _ChunkedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, bias: Tensor, mask: Tensor | None, factor: Tensor | None
    ) -> Tensor:
        attended, kept = _attend(qkv, bias, mask, factor, _attend_chunk)
        ctx.save_for_backward(bias, factor, *kept)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        bias, factor, *kept = ctx.saved_tensors
        # The planner (`simmim.plan.tracer`) expects a backward pass to consist of operators only.
        with torch._C.DisableTorchFunction():
            of_qkv, of_bias, of_factor = _differentiate(
                gradient, bias, factor, kept, _differentiate_chunk
            )
            return of_qkv, of_bias, None, None if factor is None else of_factor


@torch.library.custom_op("simmim::attend_in_chunks", mutates_args=())
def _compiled_attention(
    qkv: Tensor, bias: Tensor, mask: Tensor | None, factor: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    return _attend(qkv, bias, mask, factor, _compile(_attend_chunk))


@torch.library.custom_op("simmim::attend_in_chunks_backward", mutates_args=())
def _compiled_gradient(
    gradient: Tensor, bias: Tensor, factor: Tensor | None, kept: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    return _differentiate(gradient, bias, factor, kept, _compile(_differentiate_chunk))


@_compiled_attention.register_fake
def _(
    qkv: Tensor, bias: Tensor, mask: Tensor | None, factor: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    return _attend(qkv, bias, mask, factor, _attend_chunk)


@_compiled_gradient.register_fake
def _(
    gradient: Tensor, bias: Tensor, factor: Tensor | None, kept: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    return _differentiate(gradient, bias, factor, kept, _differentiate_chunk)


def _keep(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    _, bias, _, factor = inputs
    ctx.save_for_backward(bias, factor, *output[1])


def _use_kept(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    bias, factor, *kept = ctx.saved_tensors
    of_qkv, of_bias, of_factor = _compiled_gradient(gradient, bias, factor, kept)
    return of_qkv, of_bias, None, None if factor is None else of_factor


_compiled_attention.register_autograd(_use_kept, setup_context=_keep)


@cache
def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function, dynamic=False)
    return compiled


def _attend(
    qkv: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    factor: Tensor | None,
    attend_chunk: Callable[..., tuple[Tensor, ...]],
) -> tuple[Tensor, list[Tensor]]:
    """Returns the output and the tensors that the chunks save for backward, in order."""
    attended = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
    all_windows, all_images = _cut(qkv, bias)
    kept: list[Tensor] = []
    # Autocast would cast the chunks' float32 tensors down.
    with torch.autocast("cpu", enabled=False):
        for windows in all_windows:
            own_bias = bias
            if mask is not None:
                own_bias = bias.masked_fill(mask[windows].unsqueeze(1), -torch.inf)
            for images in all_images:
                output = attended[images, windows]
                kept += attend_chunk(qkv[images, windows], own_bias, factor, output)
    return attended, kept


def _differentiate(
    gradient: Tensor,
    bias: Tensor,
    factor: Tensor | None,
    kept: Sequence[Tensor],
    differentiate_chunk: Callable[..., None],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `qkv`, bias and factor; without a factor, the last one is empty."""
    of_qkv = gradient.new_empty(*gradient.shape[:3], 3 * gradient.shape[3])
    wide = _wide(gradient)
    of_bias = torch.zeros_like(bias, dtype=wide)
    of_factor = gradient.new_zeros(0 if factor is None else len(factor), dtype=wide)
    kept_by_chunk = zip(*(iter(kept),) * len(_Chunk._fields), strict=True)
    places = itertools.product(*_cut(of_qkv, bias))
    with torch.autocast("cpu", enabled=False):
        for (windows, images), chunk in zip(places, kept_by_chunk, strict=True):
            differentiate_chunk(
                chunk,
                gradient[images, windows],
                of_qkv[images, windows],
                of_bias,
                factor,
                of_factor,
            )
    return (
        of_qkv,
        of_bias.to(bias.dtype),
        of_factor.to(bias.dtype if factor is None else factor.dtype),
    )


def _attend_chunk(
    qkv: Tensor, bias: Tensor, factor: Tensor | None, attended: Tensor
) -> tuple[Tensor, ...]:
    """Writes the output of a chunk into `attended` and returns the tensors to save for backward."""
    chunk = _Chunk.create(qkv, bias, factor)
    by_head = torch.bmm(chunk.weights, chunk.value.flatten(0, 2))
    _split(attended, 1, bias.shape[-3])[0] = by_head.view(chunk.value.shape)
    return chunk


def _differentiate_chunk(kept: tuple[Tensor, ...], *gradients: Any) -> None:
    _Chunk(*kept).backward(*gradients)


class _Chunk(NamedTuple):
    """The tensors that attention of some windows saves for backward.

    Queries, keys and values are separate tensors: for slices of one tensor written in place, the
    compiler would compute all three for each.

    Attributes:
        query: as the products take it: divided by `query_length`.
        key: as the products take it: divided by `key_length`.
        value: the unchanged values.
        query_length: norms of the queries divided by `factor`, or √d; float32 or wider.
        key_length: norms of the keys, or 1.
        weights: the attention weight of every pair of tokens.
    """

    query: Float[Tensor, "b windows heads tokens d"]
    key: Float[Tensor, "b windows heads tokens d"]
    value: Float[Tensor, "b windows heads tokens d"]
    query_length: Float[Tensor, "_b _windows _heads _tokens 1"]
    key_length: Float[Tensor, "_b _windows _heads _tokens 1"]
    weights: Float[Tensor, "maps tokens tokens"]

    @classmethod
    def create(
        cls,
        qkv: Float[Tensor, "b windows tokens qkv_c"],
        bias: Float[Tensor, "*windows heads tokens tokens"],
        factor: Float[Tensor, " heads"] | None,
    ) -> "_Chunk":
        """Normalises and scales queries and keys, and computes the attention weights."""
        heads, tokens = bias.shape[-3:-1]
        # Cloned because they are changed in place below; for a single token, `contiguous` could
        # return the input itself.
        query, key, value = (
            part.clone(memory_format=torch.contiguous_format) for part in _split(qkv, 3, heads)
        )
        if factor is None:
            query_length = query.new_full((1,) * 5, query.shape[-1] ** 0.5, dtype=_wide(qkv))
            key_length = torch.ones_like(query_length)
        else:
            query_length = _lengths(query) / factor.view(-1, 1, 1)
            key_length = _lengths(key)
        query /= query_length
        key /= key_length
        logits = torch.bmm(query.flatten(0, 2), key.flatten(0, 2).mT).to(_wide(qkv))
        logits.view(*query.shape[:3], tokens, tokens).add_(bias)
        weights = logits.softmax(dim=-1).to(qkv.dtype)
        return cls(query, key, value, query_length, key_length, weights)

    def backward(
        self,
        gradient: Float[Tensor, "b windows tokens c"],
        qkv_gradient: Float[Tensor, "b windows tokens qkv_c"],
        bias_gradient: Float[Tensor, "heads tokens tokens"],
        factor: Float[Tensor, " heads"] | None,
        factor_gradient: Float[Tensor, " _heads"],
    ) -> None:
        """Writes the gradients of queries, keys and values, and accumulates the others."""
        wide, shape, weights = bias_gradient.dtype, self.query.shape, self.weights
        query, key, value = (part.flatten(0, 2) for part in self[:3])
        of_output = _split(gradient, 1, len(bias_gradient)).flatten(0, 3)
        of_weights = torch.bmm(of_output, value.mT).to(wide)
        of_logits = torch.ops.aten._softmax_backward_data(of_weights, weights.to(wide), -1, wide)
        bias_gradient += of_logits.view(-1, *bias_gradient.shape).sum(dim=0)
        low = of_logits.to(weights.dtype)
        of_query = torch.bmm(low, key).view(shape).to(wide)
        of_key = torch.bmm(low.mT, query).view(shape).to(wide)
        gradients = _split(qkv_gradient, 3, len(bias_gradient))
        gradients[2] = torch.bmm(weights.mT, of_output).view(shape)
        if factor is not None:
            # The gradient along a direction has no effect on the vector, only on the factor.
            along = (of_query * self.query).sum(dim=-1, keepdim=True) / factor.view(-1, 1, 1)
            factor_gradient += along.sum(dim=(0, 1, 3, 4))
            of_query = of_query - self.query * (along / factor.view(-1, 1, 1))
            of_key = of_key - self.key * (of_key * self.key).sum(dim=-1, keepdim=True)
        gradients[0] = of_query / self.query_length
        gradients[1] = of_key / self.key_length


def _lengths(vectors: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows 1"]:
    wide = _wide(vectors)
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=wide)
    return lengths.clamp(min=_SMALLEST_NORM)


def _wide(tensor: Tensor) -> torch.dtype:
    """The dtype of all but the matrix products: float32, or float64 for float64 inputs."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _cut(qkv: Tensor, bias: Tensor) -> tuple[list[slice], list[slice]]:
    """The slices of windows and of images that make up the chunks.

    A chunk is the same window of several images, which share its mask, or several windows of all
    images.
    """
    batch, windows = qkv.shape[:2]
    size = _LOGIT_BYTES * torch.get_num_threads() // (bias.numel() * 4)
    if qkv.is_meta:
        size = max(size, -(-batch * windows // _PLANNED_CHUNKS))
    images = min(max(1, size), batch)
    places = max(1, size // images)
    return (
        [slice(place, place + places) for place in range(0, windows, places)],
        [slice(image, image + images) for image in range(0, batch, images)],
    )


def _split(
    joined: Float[Tensor, "b windows tokens all_c"], parts: int, heads: int
) -> Float[Tensor, "{parts} b windows heads tokens d"]:
    """Splits channels by part (queries, keys and values; or a single one) and by head."""
    batch, windows, tokens, _ = joined.shape
    return joined.view(batch, windows, tokens, parts, heads, -1).permute(3, 0, 1, 4, 2, 5)
