"""Sampling: each sample at most once an epoch, the same global batches on any number of ranks."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simmim.data.samplers import EvaluationSampler, TrainSampler


def rank_batches(sampler: TrainSampler) -> list[list[int]]:
    """The indices of one rank, batch by batch."""
    indices = [key.sample_index for key in sampler]
    return [list(batch) for batch in zip(*[iter(indices)] * sampler.batch_size, strict=True)]


def global_batches(
    length: int, batch_size: int, world_size: int, *, seed: int = 0, epoch: int = 0
) -> list[list[int]]:
    """What all ranks together see at each step, rank after rank."""
    ranks = []
    for rank in range(world_size):
        sampler = TrainSampler(length, batch_size, seed=seed, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        ranks.append(rank_batches(sampler))
    return [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)]


@settings(deadline=None)
@given(
    length=st.integers(0, 60),
    batch_size=st.integers(1, 7),
    world_size=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_ranks_and_batches_see_each_sample_at_most_once_an_epoch(
    length: int, batch_size: int, world_size: int, epoch: int
) -> None:
    batches = global_batches(length, batch_size, world_size, epoch=epoch)
    seen = list(itertools.chain(*batches))
    assert len(seen) == len(set(seen))
    assert set(seen) <= set(range(length))
    assert len(batches) == length // (batch_size * world_size)
    assert all(len(batch) == batch_size * world_size for batch in batches)


@settings(deadline=None)
@given(
    length=st.integers(0, 80),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 5),
    world_size=st.sampled_from([2, 3, 4, 6, 12]),
)
def test_a_global_batch_does_not_depend_on_the_number_of_ranks(
    length: int, seed: int, epoch: int, world_size: int
) -> None:
    alone = global_batches(length, 12, 1, seed=seed, epoch=epoch)
    shared = global_batches(length, 12 // world_size, world_size, seed=seed, epoch=epoch)
    assert shared == alone


@settings(deadline=None)
@given(
    length=st.integers(0, 60),
    batch_size=st.integers(1, 5),
    rank=st.integers(0, 1),
    skipped=st.integers(0, 30),
)
def test_skipping_continues_exactly_and_for_one_epoch_only(
    length: int, batch_size: int, rank: int, skipped: int
) -> None:
    sampler = TrainSampler(length, batch_size, seed=1, rank=rank, world_size=2)
    whole = list(sampler)
    sampler.skip_batches(skipped)
    assert list(sampler) == whole[skipped * batch_size :]
    assert list(sampler) == whole


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    orders = [
        tuple(itertools.chain(*global_batches(30, 1, 1, seed=seed, epoch=epoch)))
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9
    assert tuple(range(30)) not in orders


def test_keys_carry_the_epoch() -> None:
    sampler = TrainSampler(4, 2, seed=0)
    sampler.set_epoch(5)
    assert {(key.epoch, key.is_padding) for key in sampler} == {(5, False)}


def test_an_epoch_is_the_same_each_time_it_is_run() -> None:
    sampler = TrainSampler(20, 3, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first != second


@pytest.mark.parametrize(("length", "expected"), [(24, 12), (25, 12), (23, 9), (5, 0)])
def test_the_length_is_that_of_the_rank_s_complete_batches(length: int, expected: int) -> None:
    sampler = TrainSampler(length, 3, seed=0, rank=1, world_size=2)
    assert len(sampler) == len(list(sampler)) == expected
    assert sampler.num_batches == expected // 3


@pytest.mark.parametrize(("length", "steps"), [(24, 2), (35, 2), (36, 3), (11, 0)])
def test_an_epoch_has_complete_steps_only(length: int, steps: int) -> None:
    """A shorter one would have gradients as if the missing batches had none."""
    sampler = TrainSampler(length, 3, seed=0, rank=1, world_size=2, accumulation=2)
    assert sampler.steps_per_epoch == steps
    assert sampler.num_batches == 2 * steps
    assert len(list(sampler)) == len(sampler) == 6 * steps


def test_samples_of_an_incomplete_last_batch_come_in_other_epochs() -> None:
    seen = {
        index
        for epoch in range(10)
        for batch in global_batches(11, 4, 1, epoch=epoch)
        for index in batch
    }
    assert seen == set(range(11))


@settings(deadline=None)
@given(length=st.integers(0, 40), world_size=st.integers(1, 7))
def test_evaluation_covers_everything_once_and_marks_the_padding(
    length: int, world_size: int
) -> None:
    ranks = [
        list(EvaluationSampler(length, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    counted = [key.sample_index for keys in ranks for key in keys if not key.is_padding]
    padding = [key.sample_index for keys in ranks for key in keys if key.is_padding]
    assert sorted(counted) == list(range(length))
    assert len(padding) < world_size
    assert set(padding) <= set(range(length))
    assert {len(keys) for keys in ranks} == {-(-length // world_size)}
    assert len(EvaluationSampler(length, rank=0, world_size=world_size)) == len(ranks[0])


def test_evaluation_deals_samples_in_turn_and_in_order() -> None:
    ranks = [
        [(key.sample_index, key.is_padding) for key in EvaluationSampler(5, rank=r, world_size=2)]
        for r in (0, 1)
    ]
    assert ranks[0] == [(0, False), (2, False), (4, False)]
    assert ranks[1] == [(1, False), (3, False), (0, True)]


def test_evaluation_of_chosen_samples_deals_out_these_alone() -> None:
    ranks = [
        [
            (key.sample_index, key.is_padding)
            for key in EvaluationSampler(9, chosen=[2, 5, 8], rank=rank, world_size=2)
        ]
        for rank in (0, 1)
    ]
    assert ranks == [[(2, False), (8, False)], [(5, False), (2, True)]]
