"""Attention analysis: attention weights, attention maps of one token, and mean distances.

Weights are those of Swin Transformer V2 (arXiv 2111.09883, section 3.2) or V1, computed with the
encoder's own modules. Attention distances are as in ViT (arXiv 2010.11929, section 4.5).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from simmim.models.swin import SwinTransformer
from simmim.models.swin.attention import WindowAttention
from simmim.models.swin.blocks import SwinBlock
from simmim.models.swin.hooks import eval_mode, named_blocks
from simmim.models.swin.windows import WindowGrid, attention_mask, partition_windows
from simmim.utils.errors import UserError
from simmim.utils.sizes import Pair, show

Mask = Bool[Tensor, "windows tokens tokens"] | None


class BlockDistance(NamedTuple):
    """The mean attention distance of one block's heads, in pixels of the image.

    Attributes:
        name: for example `stage1_block1`.
        heads: for each head, the distance between query and key token, weighted by attention and
            averaged over queries and images.
        uniform: the distance for uniform attention to all tokens that are not masked.
    """

    name: str
    heads: Float[Tensor, " heads"]
    uniform: float


class BlockMap(NamedTuple):
    """The attention map of one token of each image in one block; the weights sum to 1."""

    name: str
    weights: Float[Tensor, "b heads h w"]


def attention_weights(
    attention: WindowAttention,
    windows: Float[Tensor, "b windows tokens c"],
    mask: Mask = None,
) -> Float[Tensor, "b windows heads tokens tokens"]:
    """The softmax of the module's logits in float32; each row is a query and sums to 1.

    `windows` and `mask` are as in the `attention` module's `forward`. The whole result is held in
    memory at once.
    """
    qkv = attention.project(windows)
    batch, count, tokens, _ = windows.shape
    qkv = qkv.view(batch, count, tokens, 3, attention.num_heads, -1).permute(3, 0, 1, 4, 2, 5)
    query, key = attention.scale(qkv[0], qkv[1])
    logits = query.float() @ key.float().transpose(-2, -1) + attention.position_bias()
    if mask is not None:
        logits = logits.masked_fill(mask.unsqueeze(1), -torch.inf)
    return logits.softmax(dim=-1)


def token_places(
    grid: WindowGrid, device: torch.device | None = None
) -> Int[Tensor, "windows tokens"]:
    """The index in the map (row by row) of each token of the windows; -1 is padding."""
    height, width = grid.feature_size
    # Counted from 1, because padding is filled with 0.
    numbers = torch.arange(1, height * width + 1, dtype=torch.float64, device=device)
    return partition_windows(numbers.view(1, height, width, 1), grid)[0, :, :, 0].long() - 1


def attention_distances(
    encoder: SwinTransformer, images: Float[Tensor, "b c H W"]
) -> list[BlockDistance]:
    """The mean attention distance of every head, by block, for normalised images.

    Attention is computed for one image at a time to limit memory.
    """
    distances: list[BlockDistance] = []

    def see(name: str, seen: _Seen) -> None:
        apart = _tokens_apart(seen) * (images.shape[-2] / seen.grid.feature_size[0])
        queries = seen.places >= 0
        images_in_turn = torch.split(seen.windows, 1)
        weights = (attention_weights(seen.attention, own, seen.mask) for own in images_in_turn)
        heads = torch.stack([_mean_distance(own[0], apart, queries) for own in weights])
        allowed = torch.ones_like(apart) if seen.mask is None else (~seen.mask).float()
        equal = (allowed / allowed.sum(dim=-1, keepdim=True)).unsqueeze(1)
        uniform = float(_mean_distance(equal, apart, queries))
        distances.append(BlockDistance(name, heads.mean(dim=0).cpu(), uniform))

    with eval_mode(encoder), _observe_attention(encoder, see):
        encoder(images)
    return distances


def attention_maps(
    encoder: SwinTransformer, images: Float[Tensor, "b c H W"], query: Pair
) -> list[BlockMap]:
    """The attention map in every block of the token at `query`, `(y, x)` in pixels.

    A map is zero outside the token's window.

    Raises:
        UserError: `query` is outside the images.
    """
    image_size = (images.shape[-2], images.shape[-1])
    if not all(0 <= place < side for place, side in zip(query, image_size, strict=True)):
        middle = [side // 2 for side in image_size]
        raise UserError(
            f"query {list(query)} is outside images of {show(image_size)} pixels; use {middle}, "
            "their middle"
        )
    maps: list[BlockMap] = []

    def see(name: str, seen: _Seen) -> None:
        rows, columns = seen.grid.feature_size
        row, column = query[0] * rows // image_size[0], query[1] * columns // image_size[1]
        window, token = (seen.places == row * columns + column).nonzero()[0].tolist()
        own_mask = None if seen.mask is None else seen.mask[window : window + 1]
        own = attention_weights(seen.attention, seen.windows[:, window : window + 1], own_mask)
        is_real = seen.places[window] >= 0
        laid_out = own.new_zeros(len(own), seen.attention.num_heads, rows * columns)
        laid_out[:, :, seen.places[window][is_real]] = own[:, 0, :, token][..., is_real]
        maps.append(BlockMap(name, laid_out.view(*laid_out.shape[:2], rows, columns).cpu()))

    with eval_mode(encoder), _observe_attention(encoder, see):
        encoder(images)
    return maps


class _Seen(NamedTuple):
    """The inputs of a block's attention, and the positions of their tokens on the feature map."""

    attention: WindowAttention
    windows: Float[Tensor, "b windows tokens c"]
    mask: Mask
    grid: WindowGrid
    places: Int[Tensor, "windows tokens"]


@contextmanager
def _observe_attention(
    encoder: SwinTransformer, see: Callable[[str, _Seen], None]
) -> Iterator[None]:
    """Context manager that calls `see` with the attention inputs of each block that runs."""

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, Tensor | None]], None]:
        return lambda block, inputs: see(name, _look(block, inputs[0]))

    handles = [
        block.register_forward_pre_hook(hook_of(name))
        for name, block in named_blocks(encoder).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _look(block: nn.Module, features: Float[Tensor, "b h w c"]) -> _Seen:
    assert isinstance(block, SwinBlock)
    if block.pre_norm:
        features = block.norm1(features)
    # The map may differ in size from the one that the block was built for.
    grid = block.grid._replace(feature_size=(features.shape[1], features.shape[2]))
    return _Seen(
        block.attention,
        partition_windows(features, grid),
        attention_mask(grid, features.device),
        grid,
        token_places(grid, features.device),
    )


def _tokens_apart(seen: _Seen) -> Float[Tensor, "windows tokens tokens"]:
    """Distances between the tokens of each window, in tokens; meaningless for padding."""
    columns = seen.grid.feature_size[1]
    places = torch.stack((seen.places // columns, seen.places % columns), dim=-1).float()
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


def _mean_distance(
    weights: Float[Tensor, "windows heads tokens tokens"],
    apart: Float[Tensor, "windows tokens tokens"],
    queries: Bool[Tensor, "windows tokens"],
) -> Float[Tensor, " heads"]:
    """The attention-weighted distance, averaged over the queries that are not padding."""
    by_query = (weights * apart.unsqueeze(1)).sum(dim=-1)
    return by_query.transpose(1, 2)[queries].mean(dim=0)
