"""Samples: a function of (seed, epoch, index), whoever loads them, in whatever order."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from simmim.data.dataset import Sample, SampleKey, TransformedImages, seeded
from simmim.data.samplers import EvaluationSampler, TrainSampler
from simmim.data.unreadable.policy import BadImagePolicy
from simmim.data.unreadable.retry import unreadable
from simmim.utils.errors import UserError


class GreySource:
    """Five grey images; loading draws random numbers, which must have no effect."""

    classes = ("even", "odd")

    def present_classes(self) -> tuple[str, ...]:
        return self.classes

    def __len__(self) -> int:
        return 5

    def load(self, index: int) -> tuple[torch.Tensor, int]:
        torch.rand(index + 1)
        random.random()
        return torch.full((3, 4, 4), 10 * index, dtype=torch.uint8), index % 2

    def identifier(self, index: int) -> str:
        return str(index)


def add_noise(image: torch.Tensor) -> torch.Tensor:
    """Draws from every global generator that a transform might use."""
    pixels = torch.randint(0, 100, image.shape, dtype=torch.uint8)
    pixels[0] += np.random.randint(0, 100)  # noqa: NPY002
    pixels[1] += random.randrange(100)
    return image + pixels


def images(seed: int = 0) -> TransformedImages:
    return TransformedImages(GreySource(), add_noise, seed)


def epoch_samples(num_workers: int, *, epoch: int, batch_size: int = 1) -> dict[int, torch.Tensor]:
    sampler = TrainSampler(5, batch_size, seed=0)
    sampler.set_epoch(epoch)
    loader = DataLoader(images(), batch_size, sampler=sampler, num_workers=num_workers)
    return {
        int(index): image
        for batch in loader
        for image, index in zip(batch.image, batch.sample_index, strict=True)
    }


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_the_number_of_workers_changes_no_sample(num_workers: int) -> None:
    dataset = images()
    loaded = epoch_samples(num_workers, epoch=3)
    assert sorted(loaded) == list(range(5))
    for index, image in loaded.items():
        assert torch.equal(image, dataset[SampleKey(3, index)].image)


def test_the_order_of_loading_changes_no_sample() -> None:
    dataset, keys = images(), [SampleKey(epoch, index) for epoch in (0, 1) for index in range(5)]
    forth = [dataset[key].image for key in keys]
    torch.manual_seed(123)
    back = [dataset[key].image for key in reversed(keys)]
    for one, other in zip(forth, reversed(back), strict=True):
        assert torch.equal(one, other)


def test_seeds_epochs_and_indices_each_change_the_augmentation() -> None:
    noise = {
        tuple((images(seed)[SampleKey(epoch, index)].image - 10 * index).flatten().tolist())
        for seed in range(3)
        for epoch in range(3)
        for index in range(5)
    }
    assert len(noise) == 3 * 3 * 5


@pytest.mark.parametrize(
    "generator",
    [lambda: torch.rand(1).item(), np.random.rand, random.random],
    ids=["torch", "numpy", "python"],
)
def test_every_generator_that_a_transform_may_use_is_seeded(
    generator: Callable[[], float],
) -> None:
    def transform(image: torch.Tensor) -> torch.Tensor:
        return torch.full_like(image, int(255 * generator()))

    def draw(epoch: int) -> int:
        dataset = TransformedImages(GreySource(), transform, 0)
        return int(dataset[SampleKey(epoch, 0)].image[0, 0, 0])

    first = [draw(epoch) for epoch in range(8)]
    assert first == [draw(epoch) for epoch in range(8)]
    assert len(set(first)) > 4


def test_a_sample_leaves_the_transform_s_draws_out_of_the_global_generators() -> None:
    def quiet_load(index: int) -> tuple[torch.Tensor, int]:
        return torch.zeros(3, 4, 4, dtype=torch.uint8), 0

    source = GreySource()
    source.load = quiet_load
    dataset = TransformedImages(source, add_noise, 0)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # noqa: NPY002
    dataset[SampleKey(0, 0)]
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # noqa: NPY002
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_the_global_generators_come_back_even_after_an_error() -> None:
    before = random.getstate(), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="broken"), seeded(2**64 - 1):
        random.random()
        torch.rand(3)
        raise RuntimeError("broken")
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_labels_and_indices_come_with_the_image() -> None:
    sample = images()[SampleKey(0, 3)]
    assert isinstance(sample, Sample)
    assert (sample.label, sample.sample_index) == (1, 3)


def test_padding_is_loaded_but_has_no_index() -> None:
    padded = images()[SampleKey(0, 3, is_padding=True)]
    assert padded.sample_index == -1
    assert torch.equal(padded.image, images()[SampleKey(0, 3)].image)


def test_batches_are_samples_of_tensors_that_mark_their_padding() -> None:
    sampler = EvaluationSampler(5, rank=1, world_size=2)
    [batch] = DataLoader(images(), 3, sampler=sampler)
    assert isinstance(batch, Sample)
    assert batch.image.shape == (3, 3, 4, 4)
    assert batch.image.dtype == torch.uint8
    assert batch.label.tolist() == [1, 1, 0]
    assert batch.sample_index.tolist() == [1, 3, -1]


def test_the_length_is_the_source_s() -> None:
    assert len(images()) == 5


class Damaged:
    """Ten images of which the third and fourth cannot be read."""

    classes = ()

    def present_classes(self):
        return ()

    def __len__(self):
        return 10

    def load(self, index):
        if index in (2, 3):
            raise unreadable(str(index), "broken")
        return torch.full((3, 4, 4), index, dtype=torch.uint8), -1

    def identifier(self, index):
        return str(index)


def test_the_next_readable_image_takes_an_unreadable_one_s_place(caplog):
    images = TransformedImages(
        Damaged(), torch.nn.Identity(), seed=0, tolerance=BadImagePolicy("skip")
    )
    samples = [images[SampleKey(0, index)] for index in (1, 2, 3, 4, 2)]
    assert [int(sample.image[0, 0, 0]) for sample in samples] == [1, 4, 4, 4, 4]
    assert [sample.sample_index for sample in samples] == [1, -1, -1, 4, -1]
    # Each is named once.
    assert [record.message for record in caplog.records] == [
        "skipped: cannot read image 2 (broken)",
        "skipped: cannot read image 3 (broken)",
    ]


def test_an_unreadable_image_raises_where_it_is_asked_to():
    images = TransformedImages(
        Damaged(), torch.nn.Identity(), seed=0, tolerance=BadImagePolicy("raise")
    )
    with pytest.raises(UserError, match="cannot read image 2"):
        images[SampleKey(0, 2)]
