"""What the parity tests share: weights that hide nothing, and how near is equal."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from simmim.models.masking import enlarge

# Of the largest value. That float32's differences are rounding, float64 shows (test_training.py);
# there the official loss, which adds 1e-5 to its divisor, is what remains.
FLOAT32 = 1e-5
FLOAT64 = 1e-8
LOSS = 1e-6
GRADIENT = 1e-4

_TRUNC_NORMAL = (
    "torch.nn.init.trunc_normal_",
    "timm.models.swin_transformer.trunc_normal_",
    "timm.models.swin_transformer_v2.trunc_normal_",
)

Model = TypeVar("Model", bound=nn.Module)


def randomise(model: Model, *, seed: int = 0, largest_logit_scale: float = 3.0) -> Model:
    """Draws every parameter, so that none hides behind an initial zero or one; eval mode.

    Position biases get to be as large as the logits. A logit scale above ln 100 is clamped, but a
    sharp softmax also magnifies rounding: that belongs into float64.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if "logit_scale" in name:
                parameter.uniform_(1.5, largest_logit_scale, generator=generator)
            elif "norm" in name and name.endswith("weight"):
                parameter.normal_(1, 0.1, generator=generator)
            elif any(part in name for part in ("position_bias", "cpb_mlp", "bias_table")):
                parameter.normal_(0, 0.5, generator=generator)
            else:
                parameter.normal_(0, 0.05, generator=generator)
    return model.eval()


def draw_images(*shape: int, seed: int = 1) -> Tensor:
    """Normal noise: `b c H W`."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw_mask(batch: int, height: int, width: int, seed: int = 2) -> Tensor:
    """Masks of one entry a token, True is masked, in patches of 4 × 4 tokens."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.rand((batch, height // 4, width // 4), generator=generator) < 0.6
    return enlarge(patches, 4)


def move_targets_off(prediction: Tensor, images: Tensor, mask: Tensor) -> Tensor:
    """Gives masked pixels values at least 0.1 from the prediction: at zero the slope of L1 jumps.

    No model sees a masked pixel, so that the prediction stays.
    """
    offset = draw_images(*images.shape, seed=4).to(images)
    targets = prediction.detach() + offset + 0.1 * offset.sign()
    return torch.where(enlarge(mask, 4).unsqueeze(1), targets, images)


def build(create: Callable[[], Model]) -> Model:
    """Builds a model without its initial values, which take longer than all else; load over them."""
    with ExitStack() as stack:
        stack.enter_context(_NoInitialValues())
        for function in _TRUNC_NORMAL:
            stack.enter_context(mock.patch(function, _leave))
        return create().eval()


def _leave(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
    return tensor


class _NoInitialValues(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        draws = getattr(func, "__name__", "") in {"kaiming_uniform_", "uniform_", "normal_"}
        return (_leave if draws else func)(*args, **(kwargs or {}))


def in_double() -> AbstractContextManager[Any]:
    """Lets our model compute in float64 where it asks for float32 whatever the precision."""
    return mock.patch.object(Tensor, "float", Tensor.double)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of the largest value."""
    assert actual.shape == expected.shape
    largest = expected.abs().max().item()
    assert largest > 0
    assert math.isfinite(largest)
    return (actual - expected).abs().max().item() / largest


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float, name: str = "output") -> None:
    """Asserts that the relative error is under the tolerance; prints it for `pytest -rP`."""
    error = relative_error(actual.detach(), expected.detach())
    print(f"{name}: {error:.1e} of {tolerance:.0e}")
    assert error < tolerance, f"{name} differs by {error:.1e} of its largest value"


def assert_gradients_equal(
    actual: nn.Module, expected: Mapping[str, Tensor], tolerance: float
) -> None:
    """Asserts that each parameter's gradient agrees; prints the worst for `pytest -rP`.

    A bias of all keys changes no softmax: its gradient is zero but for rounding, which is measured
    by the queries' bias.
    """
    gradients = gradients_of(actual)
    assert gradients.keys() == expected.keys()
    errors = {}
    for name, gradient in gradients.items():
        largest = expected[name.replace("k_bias", "q_bias")].abs().max()
        assert largest > 0, f"{name} has no gradient"
        errors[name] = ((gradient - expected[name]).abs().max() / largest).item()
    worst = max(errors, key=lambda name: errors[name])
    print(f"gradient of {worst}: {errors[worst]:.1e} of {tolerance:.0e}")
    assert errors[worst] < tolerance, f"gradient of {worst} differs by {errors[worst]:.1e}"


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter's gradient by name, as a state dict that the converters take."""
    gradients = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        gradients[name] = parameter.grad
    return gradients
