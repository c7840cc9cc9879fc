"""Which rank sees which sample when: an order by (seed, epoch), whatever the number of ranks."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Sampler

from simmim.data.dataset import SampleKey
from simmim.utils.rng import derive_seed

# The order of an epoch's samples, as a function of (seed, epoch).
Order = Callable[[int, int], Int[Tensor, " length"]]


def shuffle(length: int, seed: int, epoch: int) -> Int[Tensor, " length"]:
    """A uniformly random order of all samples."""
    return torch.randperm(length, generator=_generator(seed, epoch))


def shuffle_nearby(
    counts: Sequence[int], buffer: int, seed: int, epoch: int
) -> Int[Tensor, " length"]:
    """Shards (of `counts` samples each) in random order, and their samples shuffled locally.

    This is what a shuffle buffer of `buffer` samples does to shards that are read one after
    another: a sample changes order only with those at most `buffer` places before or after it.
    """
    generator = _generator(seed, epoch)
    shards = torch.randperm(len(counts), generator=generator)
    sizes = torch.tensor(counts)
    firsts = sizes.cumsum(0) - sizes
    sizes, firsts = sizes[shards], firsts[shards]
    turns = torch.arange(int(sizes.sum()))
    ordered = turns + torch.repeat_interleave(firsts - (sizes.cumsum(0) - sizes), sizes)
    delays = torch.rand(len(turns), generator=generator, dtype=torch.float64) * buffer
    return ordered[(turns + delays).argsort()]


def in_turn(length: int, seed: int, epoch: int) -> Int[Tensor, " length"]:
    """All samples in order: places in a stream, which shuffles by itself."""
    return torch.arange(length)


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, "order", epoch) % 2**63)


class TrainSampler(Sampler[SampleKey]):
    """Orders the whole data by (seed, epoch) and distributes each global batch to the ranks.

    Global batch `g` starts at place `g · world_size · batch_size` of the shuffled order; rank `r`
    takes its `r`-th slice of `batch_size`. A step takes `accumulation` global batches; samples that
    do not fill a last step are left out of the epoch. `order` is by default a shuffle of all.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        order: Order | None = None,
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.seed = seed
        self.order: Order = order or partial(shuffle, length)
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.skipped_batches = 0

    @property
    def steps_per_epoch(self) -> int:
        """Complete steps in an epoch."""
        return self.length // (self.batch_size * self.world_size * self.accumulation)

    @property
    def num_batches(self) -> int:
        """Global batches in an epoch."""
        return self.steps_per_epoch * self.accumulation

    def __len__(self) -> int:
        """Samples of this rank in an epoch."""
        return self.num_batches * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's order (Lightning calls this)."""
        self.epoch = epoch

    def skip_batches(self, count: int) -> None:
        """Skips the first `count` batches of the next iteration, which a resumed run has seen."""
        self.skipped_batches = count

    def __iter__(self) -> Iterator[SampleKey]:
        """Keys of this rank, batch after batch."""
        used = self.order(self.seed, self.epoch)[
            : self.num_batches * self.world_size * self.batch_size
        ]
        dealt = used.view(self.num_batches, self.world_size, self.batch_size)[:, self.rank]
        first, self.skipped_batches = self.skipped_batches, 0
        for index in dealt[first:].flatten().tolist():
            yield SampleKey(self.epoch, index)


class EvaluationSampler(Sampler[SampleKey]):
    """Every sample once, in order, distributed to the ranks in turn.

    All ranks get the same number; the repeats that this takes are marked as padding and not
    counted. `chosen` are the indices of a part of the data (None: all).
    """

    def __init__(
        self,
        length: int,
        *,
        chosen: Sequence[int] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.chosen = range(length) if chosen is None else chosen
        self.length = len(self.chosen)
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        """Samples of this rank, padding included."""
        return (self.length + self.world_size - 1) // self.world_size

    def __iter__(self) -> Iterator[SampleKey]:
        """Keys of this rank."""
        for turn in range(len(self)):
            place = turn * self.world_size + self.rank
            index = self.chosen[place % self.length]
            yield SampleKey(0, index, is_padding=place >= self.length)
