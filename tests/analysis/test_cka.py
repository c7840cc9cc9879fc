"""Linear CKA against its definition by Gram matrices, and what it must not depend on."""

import pytest
import torch

from simmim.analysis import layer_features, layer_similarity, linear_cka
from simmim.models.swin import create_encoder
from simmim.utils.errors import UserError


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    mixed = x @ torch.randn(6, 9, generator=generator, dtype=torch.float64)
    noise = torch.randn(40, 9, generator=generator, dtype=torch.float64)
    return x + 3, mixed + 2 * noise


def hsic_of_gram_matrices(x, y) -> float:
    """tr(K H L H), H = 1 - 1/n (Gretton et al. 2005; Kornblith et al. 2019, equation 3)."""
    n = len(x)
    centre = torch.eye(n, dtype=x.dtype) - torch.full((n, n), 1 / n, dtype=x.dtype)
    return float(torch.trace((x @ x.T) @ centre @ (y @ y.T) @ centre))


def unbiased_hsic(x, y) -> float:
    """HSIC₁ (Song et al. 2012, equation 5), of Gram matrices without their diagonals."""
    n = len(x)
    k, m = ((features @ features.T).fill_diagonal_(0) for features in (x, y))
    last = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()
    return float((torch.trace(k @ m) + last) / (n * (n - 3)))


@pytest.mark.parametrize(
    ("debiased", "hsic"), [(False, hsic_of_gram_matrices), (True, unbiased_hsic)]
)
def test_cka_is_that_of_gram_matrices(features, debiased, hsic):
    x, y = features
    expected = hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5
    assert linear_cka(x, y, debiased=debiased) == pytest.approx(expected, rel=1e-6)
    assert 0.05 < expected < 0.95


@pytest.mark.parametrize("debiased", [False, True])
def test_rotation_scale_and_shift_change_nothing(features, debiased):
    x, y = features
    rotation, _ = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))
    turned = 7 * y @ rotation + 5
    same = linear_cka(x, y, debiased=debiased)
    assert linear_cka(x, turned, debiased=debiased) == pytest.approx(same, rel=1e-6)
    assert linear_cka(y, turned, debiased=debiased) == pytest.approx(1, rel=1e-6)
    # Any other linear map does change it.
    assert linear_cka(y, y * torch.arange(1.0, 10.0), debiased=debiased) < 0.99


def test_features_with_nothing_in_common():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(100, 80, generator=generator) for _ in range(2))
    assert linear_cka(x, y, debiased=False) > 0.4
    assert abs(linear_cka(x, y)) < 0.1
    assert linear_cka(torch.zeros(100, 3), y) == 0


def test_too_few_examples_are_named():
    with pytest.raises(UserError, match="CKA of 3 examples"):
        linear_cka(torch.randn(3, 2), torch.randn(3, 2))


def test_layers_are_compared_at_the_same_places():
    torch.manual_seed(0)
    shape = {"image_size": 32, "window_size": 4, "depths": (1, 2), "num_heads": (1, 2)}
    first = create_encoder("swin_t", embed_dim=16, **shape)
    second = create_encoder("swin_t", embed_dim=8, **shape)
    images = torch.randn(5, 3, 32, 32)
    layers = layer_features(first, images, (4, 4))
    others = layer_features(second, images, (4, 4))
    assert {name: tuple(values.shape) for name, values in layers.items()} == {
        "stage1_block1": (80, 16),
        "stage2_block1": (80, 32),
        "stage2_block2": (80, 32),
        "last": (80, 32),
    }
    pyramid = first.feature_pyramid(images)
    # The third image's place in the second row and the first column; finer maps are averaged.
    place = 2 * 16 + 1 * 4 + 0
    assert torch.allclose(layers["last"][place], pyramid[-1][2, :, 1, 0], atol=1e-5)
    averaged = pyramid[0][2, :, 2:4, 0:2].mean(dim=(1, 2))
    assert torch.allclose(layers["stage1_block1"][place], averaged, atol=1e-5)
    similarity = layer_similarity(layers, others)
    assert similarity.shape == (4, 4)
    assert float(similarity[1, 0]) == pytest.approx(
        linear_cka(layers["stage2_block1"], others["stage1_block1"]), rel=1e-5
    )
    assert torch.allclose(layer_similarity(layers, layers).diagonal(), torch.ones(4), atol=1e-5)
