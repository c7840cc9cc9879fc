"""The Swin block (attention and MLP as residual branches), and the stage with its patch merging."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from simmim.models.swin.activation_checkpointing import recompute
from simmim.models.swin.attention import AttentionBackend, PositionBias, Similarity, WindowAttention
from simmim.models.swin.derived_tables import TableModule
from simmim.models.swin.drop_path import DropPath
from simmim.models.swin.kernels.linear import Linear
from simmim.models.swin.kernels.triton_attention import regions_of
from simmim.models.swin.patch_embed import Norm, PatchMerging
from simmim.models.swin.tracing import is_symbolic
from simmim.models.swin.windows import WindowGrid, attention_mask, merge_windows, partition_windows
from simmim.utils.sizes import Pair


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.fc1 = Linear(channels, hidden_channels)
        self.activation = nn.GELU()
        self.fc2 = Linear(hidden_channels, channels)

    def forward(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Transforms each token independently."""
        return self.fc2(self.activation(self.fc1(features)))


class SwinBlock(TableModule):
    """Window attention, then an MLP, each a residual branch with its LayerNorm.

    `res_post` (V2, section 3.2): `x + norm(branch(x))`; `pre` (V1): `x + branch(norm(x))`.
    `main_branch_norm` adds one more LayerNorm on the main branch (V2-H and V2-G, section 3.2).

    Args:
        grid: how the block cuts its feature map into windows.
        pretrained_window_size: the window that a continuous `position_bias` was trained with.
        mlp_ratio: the MLP's hidden channels relative to `channels`.
        drop_path_rate: the probability that an image's branch is dropped in training.
        similarity: and `position_bias`, `attention_backend` (its `backend`), `windows_at_a_time`: as
            in `WindowAttention`.
    """

    mask: Tensor | None
    regions: Tensor | None

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
        self.register_tables()

    def create_tables(self) -> dict[str, Tensor | None]:
        """The attention mask of shifted or padded windows, in the form that the backend takes."""
        return self._create_masks(self.grid, None)

    def _create_masks(
        self, grid: WindowGrid, device: torch.device | None
    ) -> dict[str, Tensor | None]:
        mask = attention_mask(grid, device)
        if mask is None or self.attention.backend != "triton":
            return {"mask": mask, "regions": None}
        return {"mask": mask, "regions": regions_of(mask)}

    def forward(
        self, features: Float[Tensor, "b h w c"], drawn: Float[Tensor, "2 b"] | None = None
    ) -> Float[Tensor, "b h w c"]:
        """Mixes tokens within windows, then channels within tokens.

        `drawn` are drop path's factors of each image's two branches (None: drawn by drop path).
        """
        drawn_attention, drawn_mlp = (None, None) if drawn is None else drawn.unbind(0)
        if self.pre_norm:
            attended = self.attend(self.norm1(features))
            features = features + self.drop_path(attended, drawn_attention)
            return self.norm3(features + self.drop_path(self.mlp(self.norm2(features)), drawn_mlp))
        features = features + self.drop_path(self.norm1(self.attend(features)), drawn_attention)
        return self.norm3(features + self.drop_path(self.norm2(self.mlp(features)), drawn_mlp))

    def attend(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Window attention on the map; a map of another size than `grid` gets its own mask."""
        grid, mask, regions = self.grid, self.mask, self.regions
        if not is_symbolic() and features.shape[1:3] != grid.feature_size:
            grid = grid._replace(feature_size=(features.shape[1], features.shape[2]))
            mask, regions = self._create_masks(grid, features.device).values()
        windows = partition_windows(features, grid)
        return merge_windows(self.attention(windows, mask, regions), grid)


class Stage(nn.Module):
    """Patch merging (except in the first stage), then blocks at one resolution.

    The first `checkpointed_blocks` blocks use activation checkpointing.
    """

    def __init__(
        self, merging: PatchMerging | None, blocks: list[SwinBlock], checkpointed_blocks: int
    ) -> None:
        super().__init__()
        self.checkpointed_blocks = checkpointed_blocks
        self.merging = merging if merging is not None else nn.Identity()
        self.blocks = nn.ModuleList(blocks)
        # For hooks on each block's output: a hook on the block itself would fire again when it is
        # recomputed, and would be compiled with it.
        self.outputs = nn.ModuleList(nn.Identity() for _ in blocks)

    def forward(
        self,
        features: Float[Tensor, "b h w c"],
        drawn: Float[Tensor, "blocks 2 b"] | None = None,
    ) -> Float[Tensor, "b h2 w2 c2"]:
        """Returns the stage's feature map; `drawn` are the factors that each `SwinBlock` takes."""
        features = self.merging(features)
        for number, (block, output) in enumerate(zip(self.blocks, self.outputs, strict=True)):
            own = None if drawn is None else drawn[number]
            if number < self.checkpointed_blocks:
                features = recompute(block, features, own, is_random=own is None)
            else:
                features = block(features, own)
            features = output(features)
        return features
