"""Compiled blocks compute what they did, are compiled once a kind, and keep their names."""

from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from simmim.encoder import SwinTransformer
from simmim.encoder.compilation import check_compile, compile_blocks
from simmim.errors import UserError


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """Without the type checks of the tests, which the compiler would stop at."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


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


def run(encoder: SwinTransformer) -> list[torch.Tensor]:
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    features = encoder(images)
    parameters = list(encoder.parameters())
    return [features, *torch.autograd.grad((features**3).mean(), parameters)]


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
