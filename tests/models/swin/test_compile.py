"""Compiled blocks compute what they did, are compiled once a kind, and keep their names."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from simmim.models.swin import SwinTransformer
from simmim.models.swin.attention import (
    PositionBias,
    Similarity,
    WindowAttention,
    create_position_bias,
)
from simmim.models.swin.blocks import Mlp
from simmim.models.swin.compile import check_compile, compile_blocks
from simmim.models.swin.kernels import chunked_attention, linear
from simmim.models.swin.kernels.linear import Linear
from simmim.models.swin.windows import attention_mask, fit_window
from simmim.utils.errors import UserError

# The compiler would stop at checks of types.
pytestmark = pytest.mark.unchecked


@pytest.fixture
def plain_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """What operators do with a chunk is not compiled, which takes seconds."""
    monkeypatch.setattr(chunked_attention, "_compile", lambda function: function)


def create(**changes) -> SwinTransformer:
    """Maps of 12 and 6 tokens: shifted and unshifted windows, then one window of the whole map."""
    torch.manual_seed(0)
    encoder = SwinTransformer(
        embed_dim=16,
        depths=changes.pop("depths", (2, 1)),
        num_heads=(2, 2),
        image_size=24,
        window_size=6,
        patch_size=2,
        **changes,
    )
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return encoder


def run(encoder: SwinTransformer, *, is_bf16: bool = False) -> list[torch.Tensor]:
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        features = encoder(images)
    parameters = list(encoder.parameters())
    return [features, *torch.autograd.grad((features**3).mean(), parameters)]


@pytest.mark.usefixtures("plain_operators")
@pytest.mark.parametrize("checkpoint_blocks", ["none", "all"])
def test_compiled_blocks_equal_the_reference(checkpoint_blocks: str) -> None:
    torch.compiler.reset()
    encoder = create(checkpoint_blocks=checkpoint_blocks)
    names = list(encoder.state_dict())
    compile_blocks(encoder, "default", backend="aot_eager")
    reference = create(attention_backend="reference")
    assert list(encoder.state_dict()) == names == list(reference.state_dict())
    for ours, expected in zip(run(encoder), run(reference), strict=True):
        # Of the keys' bias, the gradient is zero but for rounding.
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("plain_operators")
def test_compiled_position_biases_learn_in_float32_under_autocast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their gradients are those of the same encoder without a compiler, where bf16 would round them."""
    # Compiled, biases are added to what has been rounded, and slopes are: all gradients differ by that.
    monkeypatch.setattr(linear, "is_compiled_on_cpu", lambda tensor: False)
    torch.compiler.reset()
    encoder, plain = create(), create()
    compile_blocks(encoder, "default", backend="aot_eager")
    names = ["features", *(name for name, _ in plain.named_parameters())]
    results = zip(names, run(encoder, is_bf16=True), run(plain, is_bf16=True), strict=True)
    for name, ours, expected in results:
        if "position_bias" in name:
            assert (ours - expected).norm() < 1e-5 * expected.norm(), name


@pytest.mark.parametrize(("is_bf16", "tolerance"), [(False, 1e-5), (True, 1e-2)])
@pytest.mark.parametrize("create_layer", [lambda: Linear(24, 40), lambda: Mlp(24, 40)])
def test_a_compiled_layer_equals_pytorchs(
    create_layer: Callable[[], nn.Module], is_bf16: bool, tolerance: float
) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    layer, plain = create_layer(), create_layer()
    plain.load_state_dict(layer.state_dict())
    layer.compile(backend="aot_eager", fullgraph=True)
    features = torch.randn(2, 3, 5, 24, requires_grad=True)
    results = []
    for module in (layer, plain):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            output = module(features)
        results.append(
            [output, *torch.autograd.grad(output.square().sum(), [features, *module.parameters()])]
        )
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == expected.dtype
        assert (ours - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("kind", ["log_cpb", "table"])
def test_compiled_position_biases_equal_their_own(kind: PositionBias) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    module = create_position_bias(kind, 3, (5, 4), (5, 4))
    parameters = list(module.parameters())
    weights = torch.randn(3, 20, 20)
    expected = [bias := module(), *torch.autograd.grad((bias * weights).sum(), parameters)]
    module.compile(backend="aot_eager", fullgraph=True)
    ours = [bias := module(), *torch.autograd.grad((bias * weights).sum(), parameters)]
    for own, reference in zip(ours, expected, strict=True):
        torch.testing.assert_close(own, reference)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_compiled_chunks_equal_the_reference(
    monkeypatch: pytest.MonkeyPatch, similarity: Similarity
) -> None:
    """Chunks of two windows of three images: of the same place, and one that is left over."""
    torch.compiler.reset()
    mask = attention_mask(fit_window((9, 8), (5, 3), shifted=True))
    assert mask is not None
    two_windows = 2 * 2 * 15 * 15 * 4 // torch.get_num_threads()
    monkeypatch.setattr(chunked_attention, "_LOGIT_BYTES", two_windows)
    windows = torch.randn(3, len(mask), 15, 64, generator=torch.Generator().manual_seed(0))
    results = []
    for backend in ("auto", "reference"):
        torch.manual_seed(0)
        layer = WindowAttention(64, 2, (5, 3), (5, 3), similarity=similarity, backend=backend)
        if backend == "auto":
            layer.compile(backend="aot_eager", fullgraph=True)
        attended = layer(windows, mask)
        weights = [parameter for name, parameter in layer.named_parameters() if name != "k_bias"]
        results.append([attended, *torch.autograd.grad((attended**3).sum(), weights)])
    for ours, expected in zip(*results, strict=True):
        assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.usefixtures("plain_operators")
def test_deeper_encoders_compile_no_more() -> None:
    """Whatever the depth: blocks differ by drop path's rate, which is no other code."""
    counts = []
    for depths in ((3, 2), (7, 5)):
        torch.compiler.reset()
        counter = CompileCounterWithBackend("eager")
        encoder = create(depths=depths, drop_path_rate=0.2)
        compile_blocks(encoder, "default", backend=counter)
        encoder(torch.randn(2, 3, 24, 24))
        counts.append(counter.frame_count)
    # The first block never drops; then shifted, unshifted, and the second stage's one kind.
    assert counts == [4, 4]


def test_cuda_graphs_need_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="use default"):
        compile_blocks(create(), "reduce-overhead")


def test_cuda_graphs_sum_no_gradients_up() -> None:
    with pytest.raises(
        UserError, match=r"trainer.accumulate_grad_batches is 2; use compile=default"
    ):
        check_compile("reduce-overhead", accumulation=2)
