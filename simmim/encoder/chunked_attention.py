"""Window attention on a CPU, a few windows at a time: what they need stays in the core's cache.

Where the position bias is learned, PyTorch's attention on a CPU goes over the weights of all pairs of
tokens several times, in memory, and keeps more than one copy of them. Here a chunk of windows goes
through normalisation, logits, softmax and sum before the next one does. For the backward pass it keeps
the weights, once, and queries, keys and values as the products take them: nothing is computed again.
"""

import itertools
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits of one chunk, for each thread: with their gradients they fit its share of the last cache.
_LOGIT_BYTES = 2 * 1024 * 1024
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
        attended = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
        all_windows, all_images = _cut(qkv, bias)
        kept: list[Tensor] = []
        # Autocast would take the chunks' float32 for what it is to cast down.
        with torch.autocast("cpu", enabled=False):
            for windows in all_windows:
                own_bias = bias
                if mask is not None:
                    own_bias = bias.masked_fill(mask[windows].unsqueeze(1), -torch.inf)
                for images in all_images:
                    chunk = _Chunk.create(qkv[images, windows], own_bias, factor)
                    _split(attended[images, windows], 1, len(bias))[0] = chunk.attended
                    kept += chunk
        ctx.save_for_backward(bias, factor, *kept)
        ctx.qkv_shape = qkv.shape
        ctx.places = list(itertools.product(all_windows, all_images))
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        bias, factor, *kept = ctx.saved_tensors
        qkv_gradient = gradient.new_empty(ctx.qkv_shape)
        wide = _wide(gradient)
        bias_gradient = torch.zeros_like(bias, dtype=wide)
        factor_gradient = None if factor is None else torch.zeros_like(factor, dtype=wide)
        # To what follows functions (`resources.tracing`), a backward pass is operators alone.
        with torch._C.DisableTorchFunction(), torch.autocast("cpu", enabled=False):
            for number, (windows, images) in enumerate(ctx.places):
                chunk = _Chunk(*kept[3 * number : 3 * number + 3])
                chunk.backward(
                    gradient[images, windows],
                    qkv_gradient[images, windows],
                    bias_gradient,
                    factor,
                    factor_gradient,
                )
        if factor is not None and factor_gradient is not None:
            factor_gradient = factor_gradient.to(factor.dtype)
        return qkv_gradient, bias_gradient.to(bias.dtype), None, factor_gradient


class _Chunk(NamedTuple):
    """Some windows' attention: what is kept of it.

    Attributes:
        parts: queries, keys and values as the products take them: queries and keys over `lengths`.
        lengths: of queries and keys, over what their products are multiplied by; float32 or wider.
        weights: of every pair of tokens.
    """

    parts: Float[Tensor, "3 b windows heads tokens d"]
    lengths: Float[Tensor, "2 _b _windows heads _tokens 1"]
    weights: Float[Tensor, "maps tokens tokens"]

    @classmethod
    def create(
        cls,
        qkv: Float[Tensor, "b windows tokens qkv_c"],
        bias: Float[Tensor, "*windows heads tokens tokens"],
        factor: Float[Tensor, " heads"] | None,
    ) -> "_Chunk":
        """Normalises and scales queries and keys, and compares them."""
        heads, tokens = bias.shape[-3:-1]
        parts = _split(qkv, 3, heads).contiguous()
        if factor is None:
            root = torch.tensor([parts.shape[-1] ** 0.5, 1.0], dtype=_wide(qkv), device=qkv.device)
            lengths = root.view(2, 1, 1, 1, 1, 1)
        else:
            lengths = torch.linalg.vector_norm(parts[:2], dim=-1, keepdim=True, dtype=_wide(qkv))
            lengths.clamp_(min=_SMALLEST_NORM)
            lengths[0] /= factor.view(-1, 1, 1)
        parts[:2] /= lengths
        query, key, _ = parts.flatten(1, 3)
        logits = torch.bmm(query, key.mT).to(_wide(qkv))
        logits.view(*parts.shape[1:4], tokens, tokens).add_(bias)
        return cls(parts, lengths, logits.softmax(dim=-1).to(qkv.dtype))

    @property
    def attended(self) -> Float[Tensor, "b windows heads tokens d"]:
        """The sums of values."""
        by_head = torch.bmm(self.weights, self.parts[2].flatten(0, 2))
        return by_head.view(self.parts.shape[1:])

    def backward(
        self,
        gradient: Float[Tensor, "b windows tokens c"],
        qkv_gradient: Float[Tensor, "b windows tokens qkv_c"],
        bias_gradient: Float[Tensor, "heads tokens tokens"],
        factor: Float[Tensor, " heads"] | None,
        factor_gradient: Float[Tensor, " heads"] | None,
    ) -> None:
        """Writes the gradient of queries, keys and values, and adds to the others."""
        parts, lengths, weights = self
        wide = bias_gradient.dtype
        query, key, value = parts.flatten(1, 3)
        of_output = _split(gradient, 1, len(bias_gradient)).flatten(0, 3)
        of_weights = torch.bmm(of_output, value.mT).to(wide)
        of_logits = torch.ops.aten._softmax_backward_data(of_weights, weights.to(wide), -1, wide)
        bias_gradient += of_logits.view(-1, *bias_gradient.shape).sum(dim=0)
        low = of_logits.to(weights.dtype)
        of_parts = torch.empty_like(parts)
        of_query, of_key, of_value = of_parts.flatten(1, 3)
        torch.bmm(low, key, out=of_query)
        torch.bmm(low.mT, query, out=of_key)
        torch.bmm(weights.mT, of_output, out=of_value)
        of_directions = of_parts[:2].to(wide)
        if factor is not None and factor_gradient is not None:
            # What changes a direction's length alone changes nothing but the factor.
            directions = parts[:2].to(wide)
            along = (of_directions * directions).sum(dim=-1, keepdim=True)
            along[0] /= factor.view(-1, 1, 1)
            factor_gradient += along[0].sum(dim=(0, 1, 3, 4))
            along[0] /= factor.view(-1, 1, 1)
            of_directions.addcmul_(directions, along, value=-1)
        gradients = _split(qkv_gradient, 3, len(bias_gradient))
        torch.div(of_directions, lengths, out=gradients[:2])
        gradients[2] = of_parts[2]


def _wide(tensor: Tensor) -> torch.dtype:
    """What is computed beside products: float32, or float64 where that comes in."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _cut(qkv: Tensor, bias: Tensor) -> tuple[list[slice], list[slice]]:
    """The windows and the images of each chunk.

    The same window of several images, that they share its mask, or several windows of all images.
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
    """By part (queries, keys and values; or one alone) and by head."""
    batch, windows, tokens, _ = joined.shape
    return joined.view(batch, windows, tokens, parts, heads, -1).permute(3, 0, 1, 4, 2, 5)
