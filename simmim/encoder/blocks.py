"""The Swin block and the stage: attention and MLP as residual branches, merging before a stage."""

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from simmim.encoder.attention import (
    AttentionBackend,
    PositionBias,
    Similarity,
    WindowAttention,
)
from simmim.encoder.gelu import gelu_after
from simmim.encoder.linear import Linear, is_compiled_on_cpu
from simmim.encoder.patches import Norm, PatchMerging
from simmim.encoder.recomputation import recompute
from simmim.encoder.windows import WindowGrid, attention_mask, merge_windows, partition_windows
from simmim.sizes import Pair


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.fc1 = Linear(channels, hidden_channels)
        self.activation = nn.GELU()
        self.fc2 = Linear(hidden_channels, channels)

    def forward(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Transforms each token by itself."""
        if is_compiled_on_cpu(features) and torch.is_grad_enabled():
            product = F.linear(features, self.fc1.weight)
            return self.fc2(gelu_after(product, self.fc1.bias))
        return self.fc2(self.activation(self.fc1(features)))


class DropPath(nn.Module):
    """Drops the whole branch of an image at a rate, in training (stochastic depth, arXiv 1603.09382).

    What is kept is scaled up, so that the mean stays.
    """

    kept: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.drops = rate > 0
        # A tensor, so that blocks of other rates are no other code to the compiler.
        self.register_buffer("kept", torch.tensor(1.0 - rate), persistent=False)

    def forward(self, branch: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """The branch, zero for the images that are dropped."""
        if not (self.drops and self.training):
            return branch
        drawn = torch.rand(len(branch), 1, 1, 1, device=branch.device)
        return branch * ((drawn < self.kept) / self.kept).to(branch.dtype)


class SwinBlock(nn.Module):
    """Window attention, then an MLP, each a residual branch with its LayerNorm.

    `res_post` (V2, section 3.2): `x + norm(branch(x))`; `pre` (V1): `x + branch(norm(x))`.
    `main_branch_norm` adds one more LayerNorm on the main branch (V2-H and V2-G, section 3.2).

    Args:
        grid: how the block cuts its feature map into windows.
        pretrained_window_size: the window that a continuous `position_bias` was trained with.
        mlp_ratio: the MLP's hidden channels over `channels`.
        drop_path_rate: the share of images whose branch is dropped in training.
        similarity: and `position_bias`, `attention_backend` (its `backend`), `windows_at_a_time`: as
            `WindowAttention`'s.
    """

    mask: Tensor | None

    def __init__(
        self,
        channels: int,
        num_heads: int,
        grid: WindowGrid,
        pretrained_window_size: Pair,
        *,
        norm: Norm,
        similarity: Similarity,
        position_bias: PositionBias,
        mlp_ratio: float,
        drop_path_rate: float,
        main_branch_norm: bool,
        attention_backend: AttentionBackend,
        windows_at_a_time: int,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.pre_norm = norm == "pre"
        self.attention = WindowAttention(
            channels,
            num_heads,
            grid.window_size,
            pretrained_window_size,
            similarity=similarity,
            position_bias=position_bias,
            backend=attention_backend,
            windows_at_a_time=windows_at_a_time,
        )
        self.norm1 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels) if main_branch_norm else nn.Identity()
        self.drop_path = DropPath(drop_path_rate)
        self.register_buffer("mask", attention_mask(grid), persistent=False)

    def forward(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Mixes tokens within windows, then channels within tokens."""
        if self.pre_norm:
            features = features + self.drop_path(self.attend(self.norm1(features)))
            features = features + self.drop_path(self.mlp(self.norm2(features)))
        else:
            features = features + self.drop_path(self.norm1(self.attend(features)))
            features = features + self.drop_path(self.norm2(self.mlp(features)))
        return self.norm3(features)

    def attend(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Window attention on the map; a map of another size than planned gets its own mask."""
        grid, mask = self.grid, self.mask
        feature_size = (features.shape[1], features.shape[2])
        if feature_size != grid.feature_size:
            grid = grid._replace(feature_size=feature_size)
            mask = attention_mask(grid, features.device)
        return merge_windows(self.attention(partition_windows(features, grid), mask), grid)


class Stage(nn.Module):
    """Patch merging (but in the first stage), then blocks of one resolution.

    The first `checkpointed_blocks` blocks are computed again in the backward pass, not kept.
    """

    def __init__(
        self, merging: PatchMerging | None, blocks: list[SwinBlock], checkpointed_blocks: int
    ) -> None:
        super().__init__()
        self.checkpointed_blocks = checkpointed_blocks
        self.merging = merging if merging is not None else nn.Identity()
        self.blocks = nn.ModuleList(blocks)
        # Where each block's output can be looked at: a hook on the block itself would fire again
        # where it is recomputed, and be compiled with it.
        self.outputs = nn.ModuleList(nn.Identity() for _ in blocks)

    def forward(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h2 w2 c2"]:
        """Returns the stage's feature map."""
        features = self.merging(features)
        for number, (block, output) in enumerate(zip(self.blocks, self.outputs, strict=True)):
            if number < self.checkpointed_blocks:
                features = recompute(block, features)
            else:
                features = block(features)
            features = output(features)
        return features


def drop_path_rates(drop_path_rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """The rate of every block, stage by stage: from 0 to `drop_path_rate`, linear in depth."""
    last = max(sum(depths) - 1, 1)
    rates = iter(drop_path_rate * block / last for block in range(sum(depths)))
    return [list(itertools.islice(rates, depth)) for depth in depths]
