"""Traces the memory and FLOPs of a part of a model, forward and backward, with the real modules.

They run on the meta device, which propagates shapes and allocates nothing. Every new storage is
tracked until its last tensor is freed, whether the autograd graph or anything else holds it.
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

# CUDA's memory-efficient attention needs bias rows padded to a multiple of this many elements.
_BIAS_ALIGNMENT = 8


@dataclass(frozen=True)
class Arithmetic:
    """How a device computes, as far as it determines which tensors exist and their sizes.

    Attributes:
        backend: the kernels to assume. With a learned bias, attention is memory-efficient on CUDA
            and chunked on the CPU.
        weights: the parameters' dtype.
        autocast: the dtype of matrix products; None: that of the weights.
    """

    backend: Backend
    weights: torch.dtype = torch.float32
    autocast: torch.dtype | None = None


class Segment(NamedTuple):
    """A part of a model whose one input is the output of the part before it.

    Attributes:
        function: maps the segment's input to its output, or to the loss.
        parameters: the parameters that it uses.
        owns_input: whether the input is freed once the segment no longer needs it.
    """

    function: Callable[[Tensor], Tensor]
    parameters: tuple[nn.Parameter, ...]
    owns_input: bool = True


class Passed(NamedTuple):
    """The shape and dtype of the tensor passed to the next segment, and whether it needs a gradient."""

    shape: torch.Size
    dtype: torch.dtype
    has_gradient: bool


class SegmentTrace(NamedTuple):
    """Memory in bytes and FLOPs of one segment by itself.

    Attributes:
        output: the tensor passed to the next segment.
        forward_peak: peak memory of forward, including input and output.
        held: memory held until the model's forward pass ends: `kept`, and autocast's cast weights.
        kept: memory saved for backward, including the input if it is needed again.
        backward_peak: peak memory of backward, including `kept` and temporary gradients.
        gradients: gradients of its parameters, if backward created them.
        forward_flops, backward_flops, recomputed_flops: of the batch; backward without recomputed.
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
        segment: the segment, with parameters on the meta device.
        taken: describes its input.
        arithmetic: how the planned device computes.
        keeps_gradients: gradients of an earlier batch exist and are accumulated into.
        float32_parameters: parameters that the model keeps out of autocast.
    """
    trained = [parameter for parameter in segment.parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter) if keeps_gradients else None
    # The graph keeps a leaf alive: the segment gets a copy, like the output of another segment.
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
    # torch.autograd.backward would itself be intercepted by the function mode, which would then no
    # longer see what activation checkpointing recomputes within it.
    one = (torch.ones_like(loss),)
    _engine_run_backward(
        (loss,), one, False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class _Following(torch.autograd.Function):
    """Stands in for the rest of the model: saves nothing and returns a dense gradient."""

    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        ctx.shape, ctx.dtype = output.shape, output.dtype
        return output.new_empty(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.new_empty(ctx.shape, dtype=ctx.dtype)


class _Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracks the storages that operators create, and counts FLOPs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.flops = self.recomputed = 0
        self._is_recomputing = False
        self._followed: dict[int, tuple[weakref.ref[Any], int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs one operator and records the storages that it creates."""
        # Inspecting a tensor must not be intercepted as a function on the planned device.
        with torch._C.DisableTorchFunction():
            return self._run(func, args, kwargs or {})

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for entry in args:
            if isinstance(entry, Tensor):
                # Existing weights and gradients do not count as created here.
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
        """Resets the peak and the FLOPs; returns the live bytes."""
        self.peak = self.live
        self.flops = 0
        return self.live

    def count_as_recomputed(self, call: Callable[[], Any]) -> Any:
        """Calls a function and counts its FLOPs as recomputation of the forward pass."""
        before, self._is_recomputing = self._is_recomputing, True
        try:
            return call()
        finally:  # recomputation stops early with an exception once it has what it needs
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
    """Calls an operator on the meta device, or returns the cached result for equal arguments.

    For many operators, PyTorch computes meta shapes in Python, which takes milliseconds each.
    """
    outcome = _outcome(operator)
    if outcome == "view":
        return operator(*args, **kwargs)
    key = (operator, _describe(args), _describe(tuple(kwargs.items())))
    if key in _KNOWN_RESULTS:
        return args[0] if outcome == "same" else _make(_KNOWN_RESULTS[key])
    result = operator(*args, **kwargs)
    if outcome == "same":
        # Operators such as `resize_` change the shape of their argument.
        if _describe(result) == key[1][0]:
            _KNOWN_RESULTS[key] = None
        return result
    # Not cached: views that the schema does not declare, such as `_unsafe_view`.
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
    """What an operator returns: new tensors, its first argument, or a view of an argument."""
    schema = operator._schema
    if schema.is_mutable and schema.name.endswith("_"):
        return "same"
    shares = schema.is_mutable or any(value.alias_info for value in schema.returns)
    return "view" if shares else "new"


class _Described(NamedTuple):
    """Everything that determines an operator's result for a tensor on the meta device."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


# Cached results of operators, by operator and arguments.
_KNOWN_RESULTS: dict[object, Any] = {}


def _describe(value: Any) -> Any:
    """A cache key, equal for equivalent arguments; 1, 1.0 and True differ, as do their results."""
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
    """Applies the device-dependent behaviour of the planned device on the meta device.

    On the meta device, autocast does nothing and attention is never fused. This mode applies
    autocast's rules to the functions that the encoder uses, including its cache of cast weights:
    CUDA computes layer norms in float32, the CPU in the dtype of the input.
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
        """Drops the cached casts at the end of forward; weights are cast again when needed."""
        self._casts = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs one function as on the planned device."""
        if func == Tensor.is_cpu.__get__:  # type: ignore[attr-defined]
            return self.arithmetic.backend == "cpu"
        if self.notice is None or func is BACKWARD_OPERATOR:
            return self._run(func, args, kwargs or {})
        # Backward calls operators, not functions, except the one above: the rest is recomputation.
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
