"""Fused and chunked attention equal attention spelled out, for whole encoders and layers."""

import pytest
import torch

from simmim.models.swin import SwinTransformer, attention, create_encoder
from simmim.models.swin.attention import AttentionBackend, Similarity, WindowAttention
from simmim.models.swin.kernels import chunked_attention
from simmim.models.swin.windows import attention_mask, fit_window
from simmim.utils.sizes import Pair

# Image and window: windows that divide every map, that pad it (7 and 5 divide none of 40, 20, 10
# and 5 but 5), that shrink to it, and that differ by axis.
SIZES = [
    ((128, 128), (4, 4)),
    ((160, 160), (7, 7)),
    ((160, 96), (5, 5)),
    ((64, 160), (3, 7)),
]


def create(
    name: str, image_size: Pair, window_size: Pair, backend: AttentionBackend = "sdpa"
) -> list[SwinTransformer]:
    """This backend and the reference in encoders of two blocks a stage, with the same weights."""
    fused, reference = (
        create_encoder(
            name,
            image_size=image_size,
            window_size=window_size,
            embed_dim=32,
            depths=(2, 2, 2, 2),
            num_heads=(1, 2, 4, 8),
            attention_backend=backend,
        ).eval()
        for backend in (backend, "reference")
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    reference.load_state_dict(fused.state_dict())
    return [fused, reference]


@pytest.mark.parametrize("name", ["swinv2_t", "swin_t"])
@pytest.mark.parametrize(("image_size", "window_size"), SIZES, ids=str)
@pytest.mark.parametrize("backend", ["sdpa", "chunked"])
def test_fused_equals_reference(
    name: str, image_size: Pair, window_size: Pair, backend: AttentionBackend
) -> None:
    """In float64 but for queries, keys and bias, which are normalised and summed in float32."""
    images = torch.randn(2, 3, *image_size, generator=torch.Generator().manual_seed(1)).double()
    results = []
    for encoder in create(name, image_size, window_size, backend):
        features = encoder.double()(images)
        (features**3).mean().backward()
        results.append((features, {n: p.grad for n, p in encoder.named_parameters()}))
    (features, gradients), (expected, expected_gradients) = results

    assert (features - expected).abs().max() < 1e-5 * expected.abs().max()
    for key, gradient in expected_gradients.items():
        # Of all keys' bias, the gradient is zero but for rounding.
        largest = expected_gradients[key.replace("k_bias", "q_bias")].abs().max()
        # A head's scale is one sum over all pairs of tokens, in which nearly all cancels.
        tolerance = 1e-4 if key.endswith("logit_scale") else 1e-5
        assert (gradients[key] - gradient).abs().max() < tolerance * largest, key


@pytest.mark.parametrize("name", ["swinv2_t", "swin_t"])
@torch.no_grad()
def test_fused_equals_reference_at_another_size(name: str) -> None:
    """Images larger than planned get masks of their own."""
    images = torch.randn(1, 3, 192, 224, generator=torch.Generator().manual_seed(1))
    fused, reference = create(name, (160, 160), (7, 7))
    expected = reference(images)
    assert (fused(images) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("at_a_time", [1, 2, 8, 100])
def test_chunks_of_any_size_equal_the_whole(
    monkeypatch: pytest.MonkeyPatch,
    similarity: Similarity,
    heads: int,
    shifted: bool,
    at_a_time: int,
) -> None:
    """In a window of 5×3 on a map that it does not divide; chunks of one window, of the same window
    of some images, of several windows of all images, and one for all."""
    grid = fit_window((9, 8), (5, 3), shifted=shifted)
    mask = attention_mask(grid)
    assert mask is not None
    bytes_a_window = heads * 15 * 15 * 4
    monkeypatch.setattr(
        chunked_attention, "_LOGIT_BYTES", at_a_time * bytes_a_window // torch.get_num_threads()
    )
    results = []
    for backend in ("chunked", "reference"):
        torch.manual_seed(0)
        layer = WindowAttention(
            32 * heads, heads, (5, 3), (5, 3), similarity=similarity, backend=backend
        )
        windows = torch.randn(3, len(mask), 15, 32 * heads, requires_grad=True)
        attended = layer(windows, mask)
        (attended**2 * torch.linspace(-1, 1, 32 * heads)).sum().backward()
        gradients = {name: p.grad for name, p in layer.named_parameters()}
        results.append({"attended": attended, "windows": windows.grad, **gradients})
    ours, expected = results
    for name, value in expected.items():
        # Of all keys' bias, the gradient is zero but for rounding.
        largest = expected[name.replace("k_bias", "q_bias")].abs().max()
        assert (ours[name] - value).abs().max() < 1e-5 * largest, name


def test_chunks_round_to_bf16_no_more_than_fused_attention_does() -> None:
    """Normalisation, bias and softmax stay in float32 under autocast."""
    errors = {}
    windows = torch.randn(2, 4, 25, 64, generator=torch.Generator().manual_seed(0))
    for backend in ("reference", "sdpa", "chunked"):
        torch.manual_seed(0)
        layer = WindowAttention(64, 2, (5, 5), (5, 5), backend=backend)
        with torch.autocast("cpu", torch.bfloat16, enabled=backend != "reference"):
            attended = layer(windows)
        attended.float().square().sum().backward()
        results = [attended.float(), *(p.grad for p in layer.parameters())]
        if backend == "reference":
            expected = results
        errors[backend] = [
            float((result - exact).norm() / exact.norm().clamp(min=1e-3))
            for result, exact in zip(results, expected, strict=True)
        ]
    for ours, fused in zip(errors["chunked"], errors["sdpa"], strict=True):
        assert ours < 1.5 * fused + 1e-3


@pytest.mark.parametrize("is_bf16", [False, True])
@pytest.mark.parametrize("has_gradients", [False, True])
@pytest.mark.parametrize("most", [1, 5, 7])
def test_more_than_kernels_take_goes_piece_by_piece(
    most: int, has_gradients: bool, is_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images × windows, and windows × heads where a mask gives each window a bias of its own."""
    dtype = torch.bfloat16 if is_bf16 else torch.float32
    generator = torch.Generator().manual_seed(0)
    sizes = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def record(query, *others, **named):
        sizes.append(max(query.shape[:2]))
        return attend(query, *others, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    for windows in (1, 4):
        shape = (3, 4, 2, 6, 8)
        parts = [
            torch.randn(shape, generator=generator).to(dtype).requires_grad_(has_gradients)
            for _ in range(3)
        ]
        bias = torch.randn(windows, 2, 6, 6, generator=generator, requires_grad=has_gradients)
        results = []
        for limit in (65_535, most):
            monkeypatch.setattr(attention, "_MOST_BLOCKS", limit)
            sizes.clear()
            with torch.set_grad_enabled(has_gradients):
                attended = attention.attend_sdpa(*parts, bias, is_masked=windows > 1)
            assert max(sizes) <= limit
            gradients = (
                torch.autograd.grad(attended.float().square().sum(), [*parts, bias])
                if has_gradients
                else ()
            )
            results.append((attended, *gradients))
        assert len(sizes) > 1
        for whole, pieces in zip(*results, strict=True):
            tolerance = 2e-2 if is_bf16 else 1e-5
            torch.testing.assert_close(pieces, whole, rtol=tolerance, atol=tolerance)
