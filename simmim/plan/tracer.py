"""What a part of a model holds and computes, forward and backward, from the real modules.

They run on the meta device: shapes pass through them, nothing is allocated. Every new storage is
followed until the last tensor on it is gone, in the graph of the backward pass or anywhere else.
"""

import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from simmim.models.swin.kernels.triton_attention import BACKWARD_OPERATOR

Backend = Literal["cuda", "cpu"]

# CUDA's memory-efficient attention reads its bias in rows of a multiple of this many numbers.
_BIAS_ALIGNMENT = 8


@dataclass(frozen=True)
class Arithmetic:
    """How a device computes: what decides which tensors there are, and how large they are.

    Attributes:
        backend: whose kernels. With a learned bias, attention on CUDA is memory-efficient; on the
            CPU it goes chunk by chunk.
        weights: the parameters' type.
        autocast: the type that matrix products are computed in; None: the weights'.
    """

    backend: Backend
    weights: torch.dtype = torch.float32
    autocast: torch.dtype | None = None


class Segment(NamedTuple):
    """A part of a model whose one input is the output of the part before it.

    Attributes:
        function: the part, from its input to its output, or to the loss.
        parameters: those that it uses.
        owns_input: whether the input goes when the segment needs it no longer.
    """

    function: Callable[[Tensor], Tensor]
    parameters: tuple[nn.Parameter, ...]
    owns_input: bool = True


class Passed(NamedTuple):
    """What one segment hands on to the next: a tensor's shape, its type, whether it has a gradient."""

    shape: torch.Size
    dtype: torch.dtype
    has_gradient: bool


class SegmentTrace(NamedTuple):
    """Bytes that one segment holds by itself, and what it computes.

    Attributes:
        output: what it hands on.
        forward_peak: most at once forward, with input and output.
        held: left of it until the model's forward pass ends: `kept`, and weights in autocast's type.
        kept: left of it for its backward pass; with the input where that is needed again.
        backward_peak: most at once backward, with `kept` and the gradients that come and go.
        gradients: of its parameters, where backward made new ones.
        forward_flops, backward_flops, recomputed_flops: of all images; the second without the third.
    """

    output: Passed
    forward_peak: int
    held: int
    kept: int
    backward_peak: int
    gradients: int
    forward_flops: int
    backward_flops: int
    recomputed_flops: int


def trace_segment(
    segment: Segment,
    taken: Passed,
    arithmetic: Arithmetic,
    *,
    keeps_gradients: bool = False,
    float32_parameters: Collection[nn.Parameter] = (),
) -> SegmentTrace:
    """Runs a segment forward and backward on the meta device.

    Args:
        segment: its parameters are on the meta device.
        taken: its input.
        arithmetic: of the device that is planned for.
        keeps_gradients: those of an earlier batch are there, and these are added to them.
        float32_parameters: those that the model keeps out of autocast.
    """
    trained = [parameter for parameter in segment.parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter) if keeps_gradients else None
    # A leaf would stay as long as the graph does: the segment is given a copy, as another's output.
    leaf = torch.empty(taken.shape, dtype=taken.dtype, device="meta")
    leaf.requires_grad_(taken.has_gradient)
    device = _PlannedDevice(arithmetic, float32_parameters)
    with _Storages() as storages, device:
        entered = leaf.clone() if segment.owns_input else leaf
        output = segment.function(entered)
        del entered
        forward_peak, forward_flops = storages.peak, storages.flops
        passed = Passed(output.shape, output.dtype, output.requires_grad)
        if not passed.has_gradient:
            return SegmentTrace(passed, forward_peak, 0, 0, 0, 0, forward_flops, 0, 0)
        loss = output if output.ndim == 0 else _Following.apply(output)
        del output
        held = storages.live
        device.forget_casts()
        kept = storages.restart()
        device.notice = storages.count_as_recomputed
        _backward(loss)
    made = 0 if keeps_gradients else sum(_bytes(p.grad) for p in trained if p.grad is not None)
    for parameter in trained:
        parameter.grad = None
    backward_flops = storages.flops - storages.recomputed
    return SegmentTrace(
        passed,
        forward_peak,
        held,
        kept,
        storages.peak,
        made,
        forward_flops,
        backward_flops,
        storages.recomputed,
    )


def _backward(loss: Tensor) -> None:
    # torch.autograd.backward would itself be taken for a function of the device, and what a
    # checkpoint computes again within it would no longer be seen.
    one = (torch.ones_like(loss),)
    _engine_run_backward(
        (loss,), one, False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class _Following(torch.autograd.Function):
    """Stands for the rest of the model: keeps nothing, gives back a dense gradient."""

    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        ctx.shape, ctx.dtype = output.shape, output.dtype
        return output.new_empty(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.new_empty(ctx.shape, dtype=ctx.dtype)


class _Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages that operators make, and counts floating-point operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.flops = self.recomputed = 0
        self._is_recomputing = False
        self._followed: dict[int, tuple[weakref.ref[Any], int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs one operator and notes what it made."""
        # Looking at a tensor is no function of the planned device.
        with torch._C.DisableTorchFunction():
            return self._run(func, args, kwargs or {})

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for entry in args:
            if isinstance(entry, Tensor):
                # Weights and gradients that there were before are no part of what is made.
                self._follow(entry.untyped_storage(), is_new=False)
        result = _call(func, args, kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            flops = formula(*args, **kwargs, out_val=result)
            self.flops += flops
            self.recomputed += flops if self._is_recomputing else 0
        for entry in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(entry, Tensor):
                self._follow(entry.untyped_storage())
        return result

    def restart(self) -> int:
        """Peak and operations are counted from here; returns the live bytes."""
        self.peak = self.live
        self.flops = 0
        return self.live

    def count_as_recomputed(self, call: Callable[[], Any]) -> Any:
        """Calls a function whose operations belong to the forward pass, done again."""
        before, self._is_recomputing = self._is_recomputing, True
        try:
            return call()
        finally:  # a checkpoint stops with an exception once it has what it needs
            self._is_recomputing = before

    def _follow(self, storage: torch.UntypedStorage, *, is_new: bool = True) -> None:
        key = storage._cdata
        if key in self._followed:
            return
        size = storage.nbytes() if is_new else 0
        self._followed[key] = weakref.ref(storage, lambda _: self._release(key)), size
        self.live += size
        self.peak = max(self.peak, self.live)

    def _release(self, key: int) -> None:
        self.live -= self._followed.pop(key)[1]


def _call(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operator gives on the meta device; for arguments like those before, without a call.

    PyTorch works out many operators' shapes there in Python, in milliseconds each.
    """
    outcome = _outcome(operator)
    if outcome == "view":
        return operator(*args, **kwargs)
    key = (operator, _describe(args), _describe(tuple(kwargs.items())))
    if key in _KNOWN_RESULTS:
        return args[0] if outcome == "same" else _make(_KNOWN_RESULTS[key])
    result = operator(*args, **kwargs)
    if outcome == "same":
        # Such as `resize_` give it another shape.
        if _describe(result) == key[1][0]:
            _KNOWN_RESULTS[key] = None
        return result
    # A view that its schema does not tell of, as `_unsafe_view`, is not made anew.
    taken = {entry.untyped_storage()._cdata for entry in args if isinstance(entry, Tensor)}
    made = result if isinstance(result, tuple) else (result,)
    if all(
        isinstance(entry, Tensor)
        and entry.device.type == "meta"
        and entry.untyped_storage()._cdata not in taken
        for entry in made
    ):
        _KNOWN_RESULTS[key] = _describe(result)
    return result


@cache
def _outcome(operator: Any) -> Literal["new", "same", "view"]:
    """What an operator gives: new tensors, its first argument, or what shares another's storage."""
    schema = operator._schema
    if schema.is_mutable and schema.name.endswith("_"):
        return "same"
    shares = schema.is_mutable or any(value.alias_info for value in schema.returns)
    return "view" if shares else "new"


class _Described(NamedTuple):
    """All that an operator sees of a tensor on the meta device."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


# What operators gave, by what they were given.
_KNOWN_RESULTS: dict[object, Any] = {}


def _describe(value: Any) -> Any:
    """Equal for what no operator tells apart: 1, 1.0 and True differ, as their results do."""
    if isinstance(value, Tensor):
        return _Described(value.shape, value.stride(), value.dtype)
    if isinstance(value, (tuple, list)):
        return tuple(_describe(entry) for entry in value)
    return type(value), value


def _make(described: Any) -> Any:
    if isinstance(described, _Described):
        return torch.empty_strided(
            described.shape, described.stride, dtype=described.dtype, device="meta"
        )
    return tuple(_make(entry) for entry in described)


_CAST_DOWN = {F.linear, torch.conv2d, F.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__}
_CAST_UP = {F.layer_norm}


class _PlannedDevice(TorchFunctionMode):
    """What PyTorch decides by the device of a tensor, decided for the one that is planned for.

    On the meta device autocast does nothing and attention is always spelled out. Here are autocast's
    rules for the functions that the encoder is made of, with its cache of cast weights: CUDA computes
    layer norms in float32, the CPU in whatever type comes.
    """

    def __init__(
        self, arithmetic: Arithmetic, float32_parameters: Collection[nn.Parameter]
    ) -> None:
        super().__init__()
        self.arithmetic = arithmetic
        self.notice: Callable[[Callable[[], Any]], Any] | None = None
        self._float32 = {id(parameter) for parameter in float32_parameters}
        self._casts: dict[int, Tensor] | None = {}

    def forget_casts(self) -> None:
        """The forward pass ends: weights are cast anew where they are needed again."""
        self._casts = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs one function as the planned device does."""
        if func == Tensor.is_cpu.__get__:  # type: ignore[attr-defined]
            return self.arithmetic.backend == "cpu"
        if self.notice is None or func is BACKWARD_OPERATOR:
            return self._run(func, args, kwargs or {})
        # Backward itself calls operators below these functions, but for the one above.
        return self.notice(lambda: self._run(func, args, kwargs or {}))

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        low = self.arithmetic.autocast
        if low is not None and not any(id(entry) in self._float32 for entry in args):
            if func in _CAST_DOWN or func is F.scaled_dot_product_attention:
                args, kwargs = self._cast(args, kwargs, low)
            elif func in _CAST_UP and self.arithmetic.backend == "cuda":
                args, kwargs = self._cast(args, kwargs, torch.float32)
        if func is F.scaled_dot_product_attention and self.arithmetic.backend == "cuda":
            return _memory_efficient_attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _cast(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (
            tuple(self._cast_one(entry, dtype) for entry in args),
            {name: self._cast_one(entry, dtype) for name, entry in kwargs.items()},
        )

    def _cast_one(self, entry: Any, dtype: torch.dtype) -> Any:
        if not isinstance(entry, Tensor) or not entry.is_floating_point() or entry.dtype == dtype:
            return entry
        if self._casts is None or not (entry.is_leaf and entry.requires_grad):
            return entry.to(dtype)
        if id(entry) not in self._casts:
            self._casts[id(entry)] = entry.to(dtype)
        return self._casts[id(entry)]


def _memory_efficient_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, scale: float
) -> Tensor:
    tokens = attn_mask.shape[-1]
    aligned = F.pad(attn_mask, (0, -tokens % _BIAS_ALIGNMENT))[..., :tokens]
    bias = (aligned if tokens % _BIAS_ALIGNMENT else attn_mask).expand(
        query.shape[0], query.shape[1], query.shape[2], tokens
    )
    attended: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, torch.is_grad_enabled(), scale=scale
    )[0]
    return attended
