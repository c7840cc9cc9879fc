"""Which rank sees which sample when: a function of (seed, epoch), however many ranks there are."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Sampler

from simmim.data.samples import SampleKey
from simmim.randomness import derive_seed


class TrainSampler(Sampler[SampleKey]):
    """Shuffles the whole data by (seed, epoch) and deals each global batch out to the ranks.

    Global batch `g` is places `g · world_size · batch_size` onwards of the shuffled order; rank `r`
    takes the `r`-th stretch of `batch_size`. An incomplete last batch waits for a later epoch.
    """

    def __init__(
        self, length: int, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.skipped_batches = 0

    @property
    def num_batches(self) -> int:
        """Complete global batches in an epoch."""
        return self.length // (self.batch_size * self.world_size)

    def __len__(self) -> int:
        """Samples of this rank in an epoch."""
        return self.num_batches * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's order (Lightning calls this)."""
        self.epoch = epoch

    def skip_batches(self, count: int) -> None:
        """Starts the next iteration after `count` batches: a resumed run was there before."""
        self.skipped_batches = count

    def order(self) -> Int[Tensor, " length"]:
        """The epoch's order of all samples."""
        generator = torch.Generator().manual_seed(
            derive_seed(self.seed, "order", self.epoch) % 2**63
        )
        return torch.randperm(self.length, generator=generator)

    def __iter__(self) -> Iterator[SampleKey]:
        """Keys of this rank, batch after batch."""
        used = self.order()[: self.num_batches * self.world_size * self.batch_size]
        dealt = used.view(self.num_batches, self.world_size, self.batch_size)[:, self.rank]
        first, self.skipped_batches = self.skipped_batches, 0
        for index in dealt[first:].flatten().tolist():
            yield SampleKey(self.epoch, index)


class EvaluationSampler(Sampler[SampleKey]):
    """Every sample once, in order, dealt to the ranks in turn.

    Ranks get equally many; the repeats that this takes are marked as padding and not counted.
    `chosen` are the samples of a part of the data (None: all).
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
