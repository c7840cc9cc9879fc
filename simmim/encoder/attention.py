"""Attention inside windows: scaled cosine (Swin V2, section 3.2) or scaled dot product (V1)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from simmim.encoder.chunked_attention import attend_in_chunks
from simmim.encoder.fused_attention import fused_attention, require_head_dim
from simmim.encoder.linear import Linear
from simmim.encoder.position_bias import ContinuousPositionBias, TablePositionBias
from simmim.encoder.recomputation import recompute
from simmim.sizes import Pair

Similarity = Literal["cosine", "dot"]
PositionBias = Literal["log_cpb", "linear_cpb", "table"]
# auto: the fastest that has been measured to be so: chunked in training on CPUs, sdpa everywhere else.
AttentionBackend = Literal["auto", "chunked", "sdpa", "triton", "reference"]

# The cosine's factor is at most 100 (Swin V2, section 3.2: a temperature of at least 0.01).
MAX_LOGIT_SCALE = math.log(100)


def create_position_bias(
    kind: PositionBias, num_heads: int, window_size: Pair, pretrained_window_size: Pair
) -> ContinuousPositionBias | TablePositionBias:
    """The position bias module of one attention layer."""
    if kind == "table":
        return TablePositionBias(num_heads, window_size)
    return ContinuousPositionBias(
        num_heads, window_size, pretrained_window_size, log_spaced=kind == "log_cpb"
    )


class WindowAttention(nn.Module):
    """Multi-head self-attention within each window, with a relative position bias.

    Cosine similarity: `cos(q, k) · exp(min(logit_scale, ln 100)) + bias`, one learned scale a head;
    queries and values have a bias, keys none. Dot: `q · k / √d + bias`, all three have one.
    The normalisation, the scale and the bias are computed in float32 whatever the precision.

    `windows_at_a_time` windows (0: all) are attended to, one such chunk after the other, each computed
    again in the backward pass: the same result, with the memory of one chunk.

    `window_size` is in tokens; `pretrained_window_size` the one that a continuous `position_bias` was
    trained with; `backend` as `SwinTransformer`'s `attention_backend`. Swin V2, sections 3.2 and 3.3.
    """

    k_bias: Tensor

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
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(channels))
        self.v_bias = nn.Parameter(torch.zeros(channels))
        if similarity == "cosine":
            self.register_buffer("k_bias", torch.zeros(channels), persistent=False)
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
    ) -> Float[Tensor, "b windows tokens c"]:
        """Attends within each window; pairs that are True in `mask` do not see each other."""
        bias = self.position_bias()
        batch, count = windows.shape[:2]
        size = self.windows_at_a_time
        if not 0 < size < batch * count:
            return self.attend(windows, bias, mask)
        in_a_row = windows.flatten(0, 1).unsqueeze(0)
        chunks = []
        for first in range(0, batch * count, size):
            chunk = in_a_row[:, first : first + size]
            own_mask = None
            if mask is not None:
                places = torch.arange(first, first + chunk.shape[1], device=mask.device)
                own_mask = mask[places % count]
            chunks.append(recompute(self.attend, chunk, bias, own_mask, is_random=False))
        return torch.cat(chunks, dim=1).view(windows.shape)

    def attend(
        self,
        windows: Float[Tensor, "b windows tokens c"],
        bias: Float[Tensor, "heads tokens tokens"],
        mask: Bool[Tensor, "windows tokens tokens"] | None,
    ) -> Float[Tensor, "b windows tokens c"]:
        """Attention within windows that are all taken together."""
        qkv_bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        qkv = F.linear(windows, self.qkv.weight, qkv_bias)
        if self.backend == "triton":
            return self.projection(fused_attention(qkv, bias, mask, self.factor()))
        if self.attends_in_chunks(qkv, bias):
            return self.projection(attend_in_chunks(qkv, bias, mask, self.factor()))
        bias = bias.unsqueeze(0)
        if mask is not None:
            bias = bias.masked_fill(mask.unsqueeze(1), -torch.inf)
        batch, count, tokens, _ = windows.shape
        qkv = qkv.view(batch, count, tokens, 3, self.num_heads, -1).permute(3, 0, 1, 4, 2, 5)
        query, key, value = qkv.unbind(0)
        query, key = self.scale(query, key)
        attend = attend_reference if self.backend == "reference" else attend_sdpa
        attended = attend(query, key, value, bias)
        return self.projection(attended.transpose(2, 3).flatten(3))

    def attends_in_chunks(
        self,
        qkv: Float[Tensor, "b windows tokens c3"],
        bias: Float[Tensor, "heads tokens tokens"],
    ) -> bool:
        """Whether attention goes chunk by chunk.

        Left to itself, on a CPU where the bias needs a gradient: PyTorch's fused kernel there gives
        none.
        """
        if self.backend != "auto":
            return self.backend == "chunked"
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
        """What each head's cosines are multiplied by, float32; None for the dot product."""
        if self.similarity == "dot":
            return None
        return self.logit_scale.float().clamp(max=MAX_LOGIT_SCALE).exp()


def attend_sdpa(
    query: Float[Tensor, "b windows heads tokens d"],
    key: Float[Tensor, "b windows heads tokens d"],
    value: Float[Tensor, "b windows heads tokens d"],
    bias: Float[Tensor, "bias_windows heads tokens tokens"],
) -> Float[Tensor, "b windows heads tokens d"]:
    """Attention through PyTorch's fused kernels, the bias broadcast and never copied per image.

    The kernels take four dimensions. Where all windows share the bias, windows join the batch;
    where each has its own (a mask), windows join the heads and the batch broadcasts.
    """
    first = 0 if bias.shape[0] == 1 else 1
    shared = bias if first == 0 else bias.flatten(0, 1).unsqueeze(0)
    attended = F.scaled_dot_product_attention(
        query.flatten(first, first + 1),
        key.flatten(first, first + 1),
        value.flatten(first, first + 1),
        attn_mask=shared.to(query.dtype),
        scale=1.0,
    )
    return attended.reshape(query.shape)


def attend_reference(
    query: Float[Tensor, "b windows heads tokens d"],
    key: Float[Tensor, "b windows heads tokens d"],
    value: Float[Tensor, "b windows heads tokens d"],
    bias: Float[Tensor, "bias_windows heads tokens tokens"],
) -> Float[Tensor, "b windows heads tokens d"]:
    """The same attention spelled out in float32: what the fused paths are tested against."""
    logits = query.float() @ key.float().transpose(-2, -1) + bias
    return (logits.softmax(dim=-1) @ value.float()).to(query.dtype)
