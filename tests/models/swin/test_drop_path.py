"""What drop path drops depends on PyTorch's generator alone."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from simmim.models.swin import SwinTransformer
from simmim.models.swin.compile import compile_blocks
from simmim.models.swin.drop_path import draw_paths
from simmim.models.swin.kernels import chunked_attention

# The compiler would stop at checks of types.
pytestmark = pytest.mark.unchecked


@pytest.fixture(autouse=True)
def operators_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What operators do within is not compiled, which takes seconds."""
    monkeypatch.setattr(chunked_attention, "_compile", lambda function: function)


def create(**changes) -> SwinTransformer:
    torch.manual_seed(0)
    encoder = SwinTransformer(
        embed_dim=16,
        depths=(2, 1),
        num_heads=(2, 2),
        image_size=16,
        window_size=4,
        patch_size=2,
        drop_path_rate=0.5,
        **changes,
    )
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return encoder


def train(encoder: SwinTransformer, forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The weights after eight steps."""
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.05)
    images = torch.randn(8, 6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for step, batch in enumerate(images):
        torch.manual_seed(step)
        optimizer.zero_grad()
        forward(batch).square().mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in encoder.parameters()]


def test_compiled_training_drops_what_eager_training_drops() -> None:
    """Nothing is drawn within what is compiled: compilers have generators of their own."""
    called: set[str] = set()

    def record(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        nodes = [node for node in graph.graph.nodes if node.op.startswith("call")]
        called.update(str(node.target) for node in nodes)
        return graph.forward

    plain = create()
    expected = train(plain, plain)
    by_blocks, recomputed, whole = create(), create(checkpoint_blocks="all"), create()
    torch.compiler.reset()
    compile_blocks(by_blocks, "default", backend=record)
    for encoder, forward in (
        (by_blocks, by_blocks),
        (recomputed, recomputed),
        (whole, torch.compile(whole, backend=record)),
    ):
        for ours, weight in zip(train(encoder, forward), expected, strict=True):
            torch.testing.assert_close(ours, weight, rtol=1e-4, atol=2e-6)
    drawing = [name for name in called if re.search("rand|bernoulli|dropout|uniform", name)]
    assert drawing == ["simmim.fill_uniform.default"]


def test_a_compiled_function_draws_anew_for_each_pass() -> None:
    """Though the compiler computes but once what is the same twice."""
    torch.compiler.reset()
    kept = torch.full((3, 2, 1), 0.5)

    def draw_twice(scale: Tensor) -> tuple[Tensor, Tensor]:
        return scale * draw_paths(kept, 64), scale * draw_paths(kept, 64)

    scale = torch.ones((), requires_grad=True)
    torch.manual_seed(0)
    compiled = torch.compile(draw_twice, backend="aot_eager_decomp_partition", fullgraph=True)
    drawn = compiled(scale)
    torch.manual_seed(0)
    for ours, expected in zip(drawn, draw_twice(scale), strict=True):
        assert torch.equal(ours, expected)
    assert not torch.equal(*drawn)


def test_branches_are_kept_at_their_rates_and_scaled_up() -> None:
    torch.manual_seed(0)
    kept = torch.tensor([1.0, 0.75, 0.5]).view(3, 1, 1).repeat(1, 2, 1)
    drawn = draw_paths(kept, 20_000)
    assert set(drawn[2].flatten().tolist()) == {0, 2}
    assert (drawn[0] == 1).all()
    assert drawn.mean(dim=-1).flatten().tolist() == pytest.approx([1] * 6, abs=0.05)


def test_a_block_by_itself_draws_for_itself() -> None:
    block = create().stages[0].get_submodule("blocks.1")
    features = torch.randn(64, 8, 8, 16)
    dropped = [block(features) == features for _ in range(2)]
    by_image = [equal.flatten(1).all(dim=1) for equal in dropped]
    assert not torch.equal(*by_image)
    assert torch.equal(block.eval()(features), block(features))
