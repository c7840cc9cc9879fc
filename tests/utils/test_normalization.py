"""Normalisation: the textbook formula, and every byte survives the way there and back."""

import pytest
import torch

from simmim.utils.normalization import IMAGENET_MEAN, IMAGENET_STD, Normalisation, stretch


def every_byte(channels: int) -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, channels, 16, 16)


def test_each_channel_is_scaled_by_its_own_mean_and_deviation() -> None:
    normalised = Normalisation().normalise(every_byte(3))
    assert normalised.dtype == torch.float32
    for channel in range(3):
        plain = (torch.arange(256).double() / 255 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        torch.testing.assert_close(normalised[1, channel].flatten(), plain.float())


@pytest.mark.parametrize(
    "normalisation",
    [Normalisation(), Normalisation((0.5,), (0.25,)), Normalisation((0.1, 0.9), (1.0, 0.01))],
)
def test_every_byte_comes_back(normalisation: Normalisation) -> None:
    images = every_byte(len(normalisation.mean))
    restored = normalisation.invert(normalisation.normalise(images))
    assert restored.dtype == torch.uint8
    assert torch.equal(restored, images)


def test_values_beyond_white_and_black_are_clipped_on_the_way_back() -> None:
    images = torch.tensor([-100.0, 100.0]).view(1, 1, 1, 2)
    assert Normalisation((0.5,), (0.25,)).invert(images).flatten().tolist() == [0, 255]


def test_values_are_rounded_to_the_nearest_byte() -> None:
    images = (torch.tensor([10.4, 10.6]) / 255).view(1, 1, 1, 2)
    assert Normalisation((0.0,), (1.0,)).invert(images).flatten().tolist() == [10, 11]


def test_bf16_predictions_are_inverted_in_float32() -> None:
    images = torch.tensor([[[[0.7]]]], dtype=torch.bfloat16)
    expected = round((images.item() * 0.225 + 0.406) * 255)
    assert Normalisation((0.406,), (0.225,)).invert(images).item() == expected


def test_floats_are_taken_in_their_own_units_and_what_is_not_finite_becomes_the_mean() -> None:
    images = torch.tensor([[[[100.0, 140.0, torch.nan, torch.inf, -torch.inf]], [[0.0] * 5]]])
    normalised = Normalisation((120.0, -1.0), (10.0, 2.0)).normalise(images)
    assert normalised[0, 0].tolist() == [[-2, 2, 0, 0, 0]]
    assert normalised[0, 1].tolist() == [[0.5] * 5]


def test_normalised_values_of_any_unit_make_a_picture() -> None:
    images = torch.tensor([-100.0, -2.0, 0.0, 2.0, 100.0]).view(1, 1, 1, 5)
    assert stretch(images).flatten().tolist() == [0, 0, 128, 255, 255]
