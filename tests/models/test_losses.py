"""Losses and targets against plain loops and a naive neighbourhood in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from simmim.models.losses import (
    check_target_window,
    image_l1,
    local_statistics,
    masked_l1,
    visible_mean,
)
from simmim.utils.errors import UserError


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_mask(*shape: int, share: float = 0.5) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) < share


def naive_statistics(images: torch.Tensor, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the pixels that a window holds, all windows unfolded, in float64."""
    height, width = images.shape[-2:]

    def unfold(values: torch.Tensor) -> torch.Tensor:
        columns = F.unfold(values.double(), window, padding=window // 2)
        return columns.view(*values.shape[:2], window**2, height, width)

    inside = unfold(torch.ones_like(images))
    values = unfold(images)
    count = inside.sum(dim=2)
    mean = (values * inside).sum(dim=2) / count
    square = ((values - mean.unsqueeze(2)) ** 2 * inside).sum(dim=2)
    return mean, (square / (count - 1) + 1e-6).sqrt()


def test_masked_l1_is_the_plain_mean_over_masked_pixels_and_channels() -> None:
    prediction, target = random_images(2, 3, 4, 5), random_images(2, 3, 4, 5, seed=1)
    mask = random_mask(2, 4, 5)
    differences = [
        abs(prediction[b, c, y, x].item() - target[b, c, y, x].item())
        for b, c, y, x in itertools.product(range(2), range(3), range(4), range(5))
        if mask[b, y, x]
    ]
    expected = sum(differences) / len(differences)
    assert masked_l1(prediction, target, mask).item() == pytest.approx(expected, rel=1e-6)


def test_the_loss_of_the_image_is_the_plain_mean_over_all_pixels_and_channels() -> None:
    prediction, target = random_images(2, 3, 4, 5), random_images(2, 3, 4, 5, seed=1)
    pairs = zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True)
    expected = sum(abs(mine - theirs) for mine, theirs in pairs) / (2 * 3 * 4 * 5)
    assert image_l1(prediction, target).item() == pytest.approx(expected, rel=1e-6)
    assert image_l1(prediction.bfloat16(), target).dtype == torch.float32


def test_visible_pixels_have_no_part_in_the_loss() -> None:
    target, mask = random_images(2, 3, 4, 4), random_mask(2, 4, 4)
    prediction = random_images(2, 3, 4, 4, seed=1).requires_grad_()
    masked_l1(prediction, target, mask).backward()
    assert torch.equal(prediction.grad.ne(0), mask.unsqueeze(1).expand_as(prediction))


def test_the_loss_of_bf16_predictions_is_summed_in_float32() -> None:
    # In bf16 a sum of 2¹⁶ ones would stop growing at 256.
    prediction = torch.ones(1, 1, 256, 256, dtype=torch.bfloat16)
    loss = masked_l1(prediction, torch.zeros(1, 1, 256, 256), torch.ones(1, 256, 256).bool())
    assert loss.dtype == torch.float32
    assert loss.item() == 1


@pytest.mark.parametrize("window", [3, 5, 47])
@pytest.mark.parametrize("shape", [(2, 3, 9, 7), (1, 1, 4, 30)])
def test_local_statistics_are_those_of_a_naive_neighbourhood(
    shape: tuple[int, ...], window: int
) -> None:
    images = 2 * random_images(*shape) + 1
    statistics = local_statistics(images, window)
    mean, std = naive_statistics(images, window)
    torch.testing.assert_close(statistics.mean.double(), mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(statistics.std.double(), std, rtol=1e-4, atol=1e-5)


def test_a_constant_image_normalises_to_nothing_and_stays_finite() -> None:
    images = torch.full((1, 3, 8, 8), 2.5)
    statistics = local_statistics(images, 5)
    assert statistics.std.min() >= 1e-3 * 0.999
    torch.testing.assert_close(
        statistics.normalise(images), torch.zeros_like(images), atol=1e-2, rtol=0
    )


def test_normalised_pixels_are_in_units_of_their_neighbourhood() -> None:
    images = random_images(1, 2, 8, 8)
    mean, std = naive_statistics(images, 5)
    normalised = local_statistics(images, 5).normalise(images)
    torch.testing.assert_close(
        normalised.double(), (images.double() - mean) / std, rtol=1e-3, atol=1e-4
    )


def test_inverting_gives_the_images_back() -> None:
    images = random_images(2, 3, 10, 12)
    statistics = local_statistics(images, 5)
    normalised = statistics.normalise(images)
    assert not torch.allclose(normalised, images, atol=0.1)
    torch.testing.assert_close(statistics.invert(normalised), images)


def test_statistics_of_bf16_images_are_float32() -> None:
    statistics = local_statistics(random_images(1, 3, 8, 8).bfloat16(), 3)
    assert statistics.mean.dtype == statistics.std.dtype == torch.float32


@pytest.mark.parametrize("window", [-3, 0, 1, 2, 48])
def test_a_window_without_a_centre_is_refused(window: int) -> None:
    message = f"^target window {window} must be odd and at least 3, to have a centre; use 47$"
    with pytest.raises(UserError, match=message):
        local_statistics(torch.zeros(1, 1, 4, 4), window)
    with pytest.raises(UserError, match=message):
        check_target_window(window)


def test_the_visible_mean_is_each_image_s_and_channel_s_own() -> None:
    images, mask = random_images(3, 2, 4, 5), random_mask(3, 4, 5)
    baseline = visible_mean(images, mask)
    for b, c in itertools.product(range(3), range(2)):
        expected = images[b, c][~mask[b]].mean()
        torch.testing.assert_close(baseline[b, c], expected.expand(4, 5))


def test_hidden_pixels_have_no_part_in_the_visible_mean() -> None:
    images, mask = random_images(2, 3, 4, 4), random_mask(2, 4, 4)
    changed = torch.where(mask.unsqueeze(1), torch.full_like(images, 1e6), images)
    assert torch.equal(visible_mean(changed, mask), visible_mean(images, mask))


def test_the_visible_mean_of_an_image_that_is_all_hidden_is_zero() -> None:
    images = random_images(1, 3, 4, 4)
    assert not visible_mean(images, torch.ones(1, 4, 4, dtype=torch.bool)).any()
