"""Stochastic depth (arXiv 1603.09382), drawn once per forward pass for all blocks.

It is drawn before the first block, so that it depends only on PyTorch's generator, not on
compilation or recomputation.
"""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drops a branch for whole images with probability `rate` in training.

    Kept branches are scaled up to preserve the mean.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.drops = rate > 0

    def forward(
        self, branch: Float[Tensor, "b h w c"], drawn: Float[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b h w c"]:
        """Returns the branch, zeroed for the images for which it is dropped.

        `drawn` is the factor of each image; None: drawn here.
        """
        if not (self.drops and self.training):
            return branch
        if drawn is None:
            kept = torch.full((1, 1, 1), 1 - self.rate, device=branch.device)
            drawn = draw_paths(kept, len(branch)).flatten()
        return branch * drawn.view(-1, 1, 1, 1).to(branch.dtype)


def draw_paths(kept: Float[Tensor, "*paths 1"], images: int) -> Float[Tensor, "*paths {images}"]:
    """Draws the factors of the images' branches, which are `kept` with these probabilities."""
    drawn = torch.empty(*kept.shape[:-1], images, device=kept.device)
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        _fill(drawn)
    else:
        drawn.uniform_()
    return (drawn < kept) / kept


# A custom operator, because compiled code would use another random generator. It fills its argument
# in place: two calls that return a value would be merged as duplicates and draw only once.
@torch.library.custom_op("simmim::fill_uniform", mutates_args=("drawn",))
def _fill(drawn: Tensor) -> None:
    drawn.uniform_()


@_fill.register_fake
def _(drawn: Tensor) -> None:
    pass


def drop_path_rates(drop_path_rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """The rates of the blocks, by stage: linear in depth, from 0 to `drop_path_rate`."""
    last = max(sum(depths) - 1, 1)
    rates = iter(drop_path_rate * block / last for block in range(sum(depths)))
    return [list(itertools.islice(rates, depth)) for depth in depths]
