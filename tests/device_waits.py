"""Where a program would wait for a GPU, found on the CPU.

The CPU is taken for the device, and the host is `cpu:0`, or "cpu" as a word. On the device are all
tensors, but for those that Python made without naming it, those that a test puts on the host, and what
is computed from these alone. A program waits where it reads a value of a tensor on the device, where
values there decide the size of a result, and where memory of the host is copied to the device, unless
by `non_blocking`. What CUDA's own kernels wait for is not seen.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

import simmim

DEVICE, HOST = torch.device("cpu"), torch.device("cpu", 0)
READING = {
    *(Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__, Tensor.new_tensor),
    *(Tensor.allclose, torch.allclose),
}
# What reads elsewhere ends in these: float(), a mask as an index, F.one_hot and so on.
READING_OPERATORS = {
    *(torch.ops.aten._local_scalar_dense, torch.ops.aten.equal, torch.ops.aten.bincount),
    *(torch.ops.aten.nonzero, torch.ops.aten.masked_select, torch.ops.aten.repeat_interleave),
    *(torch.ops.aten._unique2, torch.ops.aten.unique_dim, torch.ops.aten.unique_consecutive),
}
COPYING_CONSTRUCTORS = {torch.tensor, torch.as_tensor, torch.asarray}


class DeviceWaits:
    """Notes each wait between `start` and `stop` by the innermost function of simmim that led to it."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._modes = (_Operators(self), _Functions(self))
        self._is_watching = False
        # Held, so that no other storage is taken for one of them.
        self._host: dict[int, torch.UntypedStorage] = {}

    def start(self) -> None:
        """Watches what is done from here on."""
        if not self._is_watching:
            self._is_watching = True
            for mode in self._modes:
                mode.__enter__()

    def stop(self) -> None:
        """Watches no more."""
        if self._is_watching:
            self._is_watching = False
            for mode in reversed(self._modes):
                mode.__exit__(None, None, None)

    def note(self) -> None:
        frame, package = sys._getframe(), Path(simmim.__file__).parent
        while frame is not None and not Path(frame.f_code.co_filename).is_relative_to(package):
            frame = frame.f_back
        name = f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}" if frame else "?"
        self.seen.append(name)

    def put_on_host(self, *tensors: Tensor) -> None:
        """Takes these for tensors of the host."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._host[storage._cdata] = storage

    def are_on_host(self, *tensors: Tensor) -> bool:
        """Whether there are tensors, and all of them are on the host."""
        return bool(tensors) and all(
            tensor.untyped_storage()._cdata in self._host for tensor in tensors
        )


def tensors_in(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class _Functions(TorchFunctionMode):
    """What Python calls."""

    def __init__(self, waits: DeviceWaits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        waits = self.waits
        if func == Tensor.device.__get__:
            return HOST if waits.are_on_host(args[0]) else DEVICE
        if func in _device_constructors():
            is_there = _device(kwargs.get("device") or HOST) == DEVICE
            if is_there and func in COPYING_CONSTRUCTORS:
                waits.note()
            with _disable_current_modes():
                made = func(*args, **kwargs)
            if not is_there:
                waits.put_on_host(made)
            return made
        if func in READING and not waits.are_on_host(args[0]):
            waits.note()
            with _disable_current_modes():
                read = func(*args, **kwargs)
            if func is Tensor.cpu:
                read = read.clone()
                waits.put_on_host(read)
            return read
        if func is Tensor.__deepcopy__ and waits.are_on_host(args[0]):
            with _disable_current_modes():
                copied = func(*args, **kwargs)
            waits.put_on_host(copied)
            return copied
        if func is Tensor.__getitem__ and any(isinstance(part, list) for part in _parts(args[1])):
            waits.note()  # a list becomes a tensor on the device
        if func is Tensor.to and (target := _target(*args[1:], **kwargs)) is not None:
            source = HOST if waits.are_on_host(args[0]) else DEVICE
            if source != target:
                if not kwargs.get("non_blocking") or target == HOST:
                    waits.note()
                with _disable_current_modes():
                    moved = args[0].to(*args[1:], **kwargs).clone()
                if target == HOST:
                    waits.put_on_host(moved)
                return moved
        return func(*args, **kwargs)


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _target(*given: Any, **named: Any) -> torch.device | None:
    values = [*given, *named.values()]
    names = [value for value in values if isinstance(value, torch.device | str)]
    return _device(names[0]) if names else None


def _device(name: torch.device | str) -> torch.device:
    return HOST if name == "cpu" else torch.device(name)


class _Operators(TorchDispatchMode):
    """What reaches PyTorch's operators."""

    def __init__(self, waits: DeviceWaits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits, operator = self.waits, func.overloadpacket
        given = tensors_in((args, kwargs))
        is_on_host = waits.are_on_host(*given)
        if not is_on_host and (
            operator in READING_OPERATORS
            or (operator is torch.ops.aten.copy_ and waits.are_on_host(given[-1]))
            or (
                operator is torch.ops.aten.index
                and any(at.dtype == torch.bool or waits.are_on_host(at) for at in given[1:])
            )
        ):
            waits.note()
        made = func(*args, **(kwargs or {}))
        if is_on_host:
            waits.put_on_host(*tensors_in(made))
        return made
