"""Random erasing: how often, where, and with what; and no noise but where it is seen."""

import pytest
import torch

from simmim.data.transforms import NoiseErasing

CASES = [torch.uint8, torch.float32]


def plain(dtype: torch.dtype) -> torch.Tensor:
    """A slope of about the noise's mean, without its values."""
    slope = torch.linspace(0, 255, 40 * 48).view(1, 40, 48).expand(3, -1, -1)
    return slope.to(dtype) if dtype == torch.uint8 else slope * 10 + 1000


def erase(dtype: torch.dtype, probability: float, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return NoiseErasing(probability)(plain(dtype))


def test_an_image_is_erased_as_often_as_asked_and_else_draws_one_number() -> None:
    erased = 0
    for seed in range(400):
        image = erase(torch.uint8, 0.25, seed)
        after = torch.rand(1)
        torch.manual_seed(seed)
        torch.rand(1)
        is_kept = torch.equal(image, plain(torch.uint8))
        assert torch.equal(torch.rand(1), after) == is_kept
        erased += not is_kept
    assert 0.2 < erased / 400 < 0.3


@pytest.mark.parametrize("dtype", CASES)
def test_a_rectangle_of_noise_is_a_function_of_the_seed(dtype: torch.dtype) -> None:
    shares, noise = [], []
    for seed in range(200):
        image = erase(dtype, 1.0, seed)
        assert image.dtype == dtype
        assert torch.equal(image, erase(dtype, 1.0, seed))
        changed = (image != plain(dtype)).any(dim=0)
        rows, columns = changed.any(dim=1).nonzero(), changed.any(dim=0).nonzero()
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        # Noise may be of the image's value at a pixel.
        assert changed[box].float().mean() > 0.9
        shares.append(changed[box].numel() / changed.numel())
        noise.append(image[(slice(None), *box)].flatten().float())
    assert 0.015 < min(shares) < 0.03
    assert 0.29 < max(shares) < 0.36
    values = torch.cat(noise)
    mean, std = (114.0, 57.0) if dtype == torch.uint8 else (1000 + 10 * 127.5, 10 * 255 / 12**0.5)
    assert values.mean() == pytest.approx(mean, rel=0.02)
    assert values.std() == pytest.approx(std, rel=0.05)


def test_the_image_itself_is_left_as_it_was() -> None:
    image = plain(torch.uint8).clone()
    torch.manual_seed(0)
    assert not torch.equal(NoiseErasing(1.0)(image), image)
    assert torch.equal(image, plain(torch.uint8))
