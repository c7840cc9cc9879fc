"""An encoder that is traced, exported or transformed computes what it does when it just runs."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simmim.models.classifier import Classifier
from simmim.models.simmim import SimMIM
from simmim.models.swin import SwinTransformer

# Every choice that is made for speed or memory while a forward pass runs.
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunked": {"attention_backend": "chunked"},
    "recomputed": {"checkpoint_blocks": "all", "sequential_attention": 1},
    "V1": {"norm": "pre", "similarity": "dot", "position_bias": "table"},
}
Module = Callable[[Tensor], Tensor]


# What is traced is no tensor of known sizes.
pytestmark = pytest.mark.unchecked


def create(**changes: Any) -> SwinTransformer:
    """Shifted windows, and a map that the windows do not divide."""
    torch.manual_seed(0)
    encoder = SwinTransformer(
        embed_dim=16,
        depths=(2, 1),
        num_heads=(2, 2),
        image_size=20,
        window_size=4,
        patch_size=2,
        **changes,
    )
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return encoder


def draw(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 20, 20, generator=torch.Generator().manual_seed(batch))


def trace_by_jit(module: nn.Module) -> Module:
    traced: Module = torch.jit.trace(module, draw())
    return traced


def export_any_batch(module: nn.Module) -> Module:
    batch = ({0: torch.export.Dim("batch")},)
    return torch.export.export(module, (draw(),), dynamic_shapes=batch).module()


def trace_by_fx(module: nn.Module) -> Module:
    return torch.fx.symbolic_trace(module)


def trace_operators(module: nn.Module) -> Module:
    from torch.fx.experimental.proxy_tensor import make_fx

    traced: Module = make_fx(module)(draw())
    return traced


def map_over_images(module: nn.Module) -> Module:
    return torch.vmap(lambda image: module(image[None])[0])


def write_onnx(module: nn.Module) -> Module:
    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(
        module, (draw(),), file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}}
    )
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"x": images.numpy()})[0])


FIXED = [trace_by_jit, trace_by_fx, trace_operators, map_over_images]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("way", "is_training", "has_gradients"),
    [*((way, True, True) for way in WAYS), ("plain", False, True), ("plain", False, False)],
)
def test_what_is_traced_equals_what_runs(way: str, is_training: bool, has_gradients: bool) -> None:
    encoder = create(**WAYS[way]).train(is_training)
    with torch.no_grad():
        expected = encoder(draw())
    for trace in FIXED:
        with torch.set_grad_enabled(has_gradients):
            traced = trace(encoder)
        with torch.no_grad():
            torch.testing.assert_close(traced(draw()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["chunked", "recomputed", "V1"])
def test_what_is_exported_takes_any_batch(way: str) -> None:
    encoder = create(**WAYS[way]).train(way == "recomputed")
    exported = export_any_batch(encoder)
    names = {str(node.target) for node in exported.graph.nodes}  # type: ignore[attr-defined]
    assert not [name for name in names if name.startswith("simmim.")]
    for batch in (1, 3):
        with torch.no_grad():
            expected = encoder(draw(batch))
            torch.testing.assert_close(exported(draw(batch)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["plain", "recomputed"])
def test_onnx_of_the_older_exporter_takes_any_batch(way: str) -> None:
    encoder = create(**WAYS[way]).eval()
    run = write_onnx(encoder)
    for batch in (1, 3):
        with torch.no_grad():
            torch.testing.assert_close(run(draw(batch)), encoder(draw(batch)), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_whole_models_are_traced_and_exported() -> None:
    classifier = Classifier(create(), 5).eval()
    simmim = SimMIM(create()).eval()
    inputs = (draw(), torch.rand(2, 10, 10) < 0.5)
    for model, given in ((classifier, inputs[:1]), (simmim, inputs)):
        expected = model(*given)
        exported = torch.export.export(model, given).module()
        traced = torch.jit.trace(model, given)
        for other in (exported, traced):
            torch.testing.assert_close(other(*given), expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_functions_are_those_of_modules() -> None:
    encoder = create()
    weights = {name: value.detach() for name, value in encoder.named_parameters()}

    def loss(weights: dict[str, Tensor], images: Tensor) -> Tensor:
        features: Tensor = torch.func.functional_call(encoder, weights, images)
        return features.square().mean()

    gradients = torch.func.grad(loss)(weights, draw())
    each = torch.vmap(torch.func.grad(lambda w, x: loss(w, x[None])), (None, 0))(weights, draw())
    encoder(draw()).square().mean().backward()
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(each[name].mean(dim=0), parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_copies_and_quantised_copies_compute_the_same() -> None:
    encoder = create().eval()
    with torch.no_grad():
        expected = encoder(draw())
        for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
            assert torch.equal(other(draw()), expected)
        quantised = torch.ao.quantization.quantize_dynamic(encoder, {nn.Linear})
        assert (quantised(draw()) - expected).norm() < 0.1 * expected.norm()


class Adapted(nn.Module):
    """A linear layer with something added, as adapters of low rank are."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.weight = layer.weight
        self.bias = layer.bias

    def forward(self, features: Tensor) -> Tensor:
        return 2 * self.layer(features)


@pytest.mark.parametrize("path", ["attention.qkv", "mlp.fc1", "attention.position_bias.mlp.0"])
def test_a_layer_that_was_replaced_takes_part(path: str) -> None:
    encoder = create().eval()
    before = encoder(draw())
    block = encoder.stages[0].get_submodule("blocks.0")
    block.set_submodule(path, Adapted(block.get_submodule(path)))  # type: ignore[arg-type]
    assert not torch.allclose(encoder(draw()), before, atol=1e-4)
