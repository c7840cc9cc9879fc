"""Attention inside windows: scaled cosine (Swin V2, section 3.2) or scaled dot product (V1)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from simmim.models.swin.activation_checkpointing import recompute
from simmim.models.swin.kernels.chunked_attention import attend_in_chunks
from simmim.models.swin.kernels.linear import Linear
from simmim.models.swin.kernels.triton_attention import fused_attention, require_head_dim
from simmim.models.swin.position_bias import ContinuousPositionBias, TablePositionBias
from simmim.models.swin.tracing import is_traced
from simmim.utils.sizes import Pair

Similarity = Literal["cosine", "dot"]
PositionBias = Literal["log_cpb", "linear_cpb", "table"]
# auto: the fastest one as measured: chunked for training on CPUs, sdpa everywhere else.
AttentionBackend = Literal["auto", "chunked", "sdpa", "triton", "reference"]

# The cosine's scale is at most 100 (Swin V2, section 3.2: a temperature of at least 0.01).
MAX_LOGIT_SCALE = math.log(100)

# CUDA's attention kernels map batch and heads to grid dimensions that are limited to this size.
_MOST_BLOCKS = 65_535


def create_position_bias(
    kind: PositionBias, num_heads: int, window_size: Pair, pretrained_window_size: Pair
) -> ContinuousPositionBias | TablePositionBias:
    """Creates the position bias module of one attention layer."""
    if kind == "table":
        return TablePositionBias(num_heads, window_size)
    return ContinuousPositionBias(
        num_heads, window_size, pretrained_window_size, log_spaced=kind == "log_cpb"
    )


class WindowAttention(nn.Module):
    """Multi-head self-attention within each window, with a relative position bias.

    Cosine similarity: `cos(q, k) · exp(min(logit_scale, ln 100)) + bias`, one learned scale per
    head; the projections of queries and values have a bias, that of keys has none. Dot product:
    `q · k / √d + bias`, and all three have one. The normalisation, the scale and the position bias
    are always computed in float32.

    Attention is computed for `windows_at_a_time` windows at a time (0: all), and each such chunk is
    recomputed in the backward pass: the same result, with the memory of one chunk.

    `window_size` is in tokens; `pretrained_window_size` is the one that a continuous
    `position_bias` was trained with; `backend` is `SwinTransformer`'s `attention_backend`.
    Swin V2, sections 3.2 and 3.3.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window_size: Pair,
        pretrained_window_size: Pair,
        *,
        similarity: Similarity = "cosine",
        position_bias: PositionBias = "log_cpb",
        backend: AttentionBackend = "auto",
        windows_at_a_time: int = 0,
    ) -> None:
        super().__init__()
        if backend == "triton":
            require_head_dim(channels // num_heads)
        self.windows_at_a_time = windows_at_a_time
        self.num_heads = num_heads
        self.similarity = similarity
        self.backend = backend
        self.qkv: nn.Module = nn.Linear(channels, 3 * channels, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(channels))
        self.v_bias = nn.Parameter(torch.zeros(channels))
        if similarity == "cosine":
            self.register_parameter("k_bias", None)
            self.logit_scale = nn.Parameter(torch.full((num_heads,), math.log(10)))
        else:
            self.k_bias = nn.Parameter(torch.zeros(channels))
        self.projection = Linear(channels, channels)
        self.position_bias = create_position_bias(
            position_bias, num_heads, window_size, pretrained_window_size
        )

    def forward(
        self,
        windows: Float[Tensor, "b windows tokens c"],
        mask: Bool[Tensor, "windows tokens tokens"] | None = None,
        regions: Int[Tensor, "windows tokens"] | None = None,
    ) -> Float[Tensor, "b windows tokens c"]:
        """Attention within each window; pairs that are True in `mask` do not attend to each other.

        `regions` are `triton_attention.regions_of(mask)`, for the backend that takes them.
        """
        bias = self.position_bias()
        size = self.windows_at_a_time
        if size == 0 or is_traced() or size >= windows.shape[0] * windows.shape[1]:
            return self.attend(windows, bias, mask, regions)
        batch, count = windows.shape[:2]
        in_a_row = windows.flatten(0, 1).unsqueeze(0)
        chunks = []
        for first in range(0, batch * count, size):
            chunk = in_a_row[:, first : first + size]
            own_mask = own_regions = None
            if mask is not None:
                places = torch.arange(first, first + chunk.shape[1], device=mask.device) % count
                own_mask = mask[places]
                own_regions = None if regions is None else regions[places]
            chunks.append(
                recompute(self.attend, chunk, bias, own_mask, own_regions, is_random=False)
            )
        return torch.cat(chunks, dim=1).view(windows.shape)

    def attend(
        self,
        windows: Float[Tensor, "b windows tokens c"],
        bias: Float[Tensor, "heads tokens tokens"],
        mask: Bool[Tensor, "windows tokens tokens"] | None,
        regions: Int[Tensor, "windows tokens"] | None = None,
    ) -> Float[Tensor, "b windows tokens c"]:
        """Attention within all the given windows at once."""
        qkv = self.project(windows)
        if self.backend == "triton" and not is_traced():
            return self.projection(fused_attention(qkv, bias, mask, self.factor(), regions))
        if self.attends_in_chunks(qkv, bias):
            return self.projection(attend_in_chunks(qkv, bias, mask, self.factor()))
        bias = bias.unsqueeze(0)
        if mask is not None:
            bias = bias.masked_fill(mask.unsqueeze(1), -torch.inf)
        batch, count, tokens, _ = windows.shape
        qkv = qkv.view(batch, count, tokens, 3, self.num_heads, -1).permute(3, 0, 1, 4, 2, 5)
        query, key, value = qkv.unbind(0)
        query, key = self.scale(query, key)
        if self.backend == "reference":
            attended = attend_reference(query, key, value, bias)
        else:
            attended = attend_sdpa(query, key, value, bias, is_masked=mask is not None)
        return self.projection(attended.transpose(2, 3).flatten(3))

    def project(
        self, windows: Float[Tensor, "b windows tokens c"]
    ) -> Float[Tensor, "b windows tokens c3"]:
        """Projects to queries, keys and values, concatenated along channels, each split by head."""
        k_bias = torch.zeros_like(self.q_bias) if self.k_bias is None else self.k_bias
        bias = torch.cat((self.q_bias, k_bias, self.v_bias))
        if isinstance(self.qkv, nn.Linear):
            return F.linear(windows, self.qkv.weight, bias)
        # A replacement layer, e.g. a quantised one or one with an adapter.
        projected: Tensor = self.qkv(windows)
        return projected + bias

    def attends_in_chunks(
        self,
        qkv: Float[Tensor, "b windows tokens c3"],
        bias: Float[Tensor, "heads tokens tokens"],
    ) -> bool:
        """Whether attention is computed in chunks.

        With `auto`, it is on a CPU where the bias needs a gradient, which PyTorch's fused CPU
        kernel does not compute.
        """
        if self.backend != "auto" or is_traced():
            return self.backend == "chunked" and not is_traced()
        is_learning = torch.is_grad_enabled() and bias.requires_grad
        return is_learning and qkv.is_cpu

    def scale(
        self,
        query: Float[Tensor, "b windows heads tokens d"],
        key: Float[Tensor, "b windows heads tokens d"],
    ) -> tuple[
        Float[Tensor, "b windows heads tokens d"], Float[Tensor, "b windows heads tokens d"]
    ]:
        """Scales queries and keys so that their plain dot product is the attention logit."""
        factor = self.factor()
        if factor is None:
            return query * query.shape[-1] ** -0.5, key
        scaled = F.normalize(query.float(), dim=-1) * factor.view(-1, 1, 1)
        return scaled.to(query.dtype), F.normalize(key.float(), dim=-1).to(key.dtype)

    def factor(self) -> Float[Tensor, " heads"] | None:
        """The scale of each head's cosines, in float32; None for the dot product."""
        if self.similarity == "dot":
            return None
        return self.logit_scale.float().clamp(max=MAX_LOGIT_SCALE).exp()


def attend_sdpa(
    query: Float[Tensor, "b windows heads tokens d"],
    key: Float[Tensor, "b windows heads tokens d"],
    value: Float[Tensor, "b windows heads tokens d"],
    bias: Float[Tensor, "bias_windows heads tokens tokens"],
    *,
    is_masked: bool,
) -> Float[Tensor, "b windows heads tokens d"]:
    """Attention with PyTorch's fused kernels; the bias is broadcast, never copied per image.

    The kernels take four dimensions. If all windows share the bias, windows are folded into the
    batch; if each has its own (`is_masked`), they are folded into the heads and the bias broadcasts
    over the batch. Sizes beyond the limit of CUDA's kernels are computed piece by piece.
    """
    first = 1 if is_masked else 0
    shared = bias.flatten(0, 1).unsqueeze(0) if is_masked else bias
    attended = _attend_piecewise(
        query.flatten(first, first + 1),
        key.flatten(first, first + 1),
        value.flatten(first, first + 1),
        shared.to(query.dtype),
    )
    return attended.reshape(query.shape)


def _attend_piecewise(
    query: Float[Tensor, "batch maps tokens d"],
    key: Float[Tensor, "batch maps tokens d"],
    value: Float[Tensor, "batch maps tokens d"],
    bias: Float[Tensor, "1 maps tokens tokens"],
) -> Float[Tensor, "batch maps tokens d"]:
    # Not when tracing: the size must not be fixed in the traced program.
    for dim in () if is_traced() else (0, 1):
        if query.shape[dim] > _MOST_BLOCKS:
            parts = [list(torch.split(part, _MOST_BLOCKS, dim)) for part in (query, key, value)]
            biases = (
                [bias] * len(parts[0]) if dim == 0 else list(torch.split(bias, _MOST_BLOCKS, dim))
            )
            pieces = [_attend_piecewise(*piece) for piece in zip(*parts, biases, strict=True)]
            return torch.cat(pieces, dim)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)


def attend_reference(
    query: Float[Tensor, "b windows heads tokens d"],
    key: Float[Tensor, "b windows heads tokens d"],
    value: Float[Tensor, "b windows heads tokens d"],
    bias: Float[Tensor, "bias_windows heads tokens tokens"],
) -> Float[Tensor, "b windows heads tokens d"]:
    """The same attention written out in float32, against which the fused backends are tested."""
    logits = query.float() @ key.float().transpose(-2, -1) + bias
    return (logits.softmax(dim=-1) @ value.float()).to(query.dtype)
