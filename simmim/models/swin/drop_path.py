"""Stochastic depth (arXiv 1603.09382): which images skip which branch, drawn once for all blocks.

A forward pass draws before its first block: what is dropped depends on PyTorch's generator alone, not
on what is compiled or computed again.
"""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drops the whole branch of an image at a rate, in training.

    What is kept is scaled up, so that the mean stays.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.drops = rate > 0

    def forward(
        self, branch: Float[Tensor, "b h w c"], drawn: Float[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b h w c"]:
        """The branch, zero for the images that are dropped.

        `drawn` is what to multiply each image by; None: it is drawn here.
        """
        if not (self.drops and self.training):
            return branch
        if drawn is None:
            kept = torch.full((1, 1, 1), 1 - self.rate, device=branch.device)
            drawn = draw_paths(kept, len(branch)).flatten()
        return branch * drawn.view(-1, 1, 1, 1).to(branch.dtype)


def draw_paths(kept: Float[Tensor, "*paths 1"], images: int) -> Float[Tensor, "*paths {images}"]:
    """What to multiply the images' branches by, which are `kept` with these probabilities."""
    drawn = torch.empty(*kept.shape[:-1], images, device=kept.device)
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        _fill(drawn)
    else:
        drawn.uniform_()
    return (drawn < kept) / kept


# An operator: the compiler has another generator of its own. It fills what it is given, for two that
# return something would be taken for the same and drawn once.
@torch.library.custom_op("simmim::fill_uniform", mutates_args=("drawn",))
def _fill(drawn: Tensor) -> None:
    drawn.uniform_()


@_fill.register_fake
def _(drawn: Tensor) -> None:
    pass


def drop_path_rates(drop_path_rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """The rate of every block, stage by stage: from 0 to `drop_path_rate`, linear in depth."""
    last = max(sum(depths) - 1, 1)
    rates = iter(drop_path_rate * block / last for block in range(sum(depths)))
    return [list(itertools.islice(rates, depth)) for depth in depths]
