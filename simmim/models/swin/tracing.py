"""Detects tracing and export, during which modules use only plain PyTorch operators."""

import torch


def is_traced() -> bool:
    """Whether operators are being recorded or transformed rather than just executed.

    That is by `torch.jit.trace`, `torch.export`, `torch.onnx.export`, `torch.fx` or a `torch.func`
    transform. A fast path chosen by grad mode, device or input size would be baked into the
    exported program, or be a custom operator unknown to its runtime; PyTorch's plain operators
    compute the same. False under `torch.compile`, which has its own checks.
    """
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    is_transformed = torch._C._are_functorch_transforms_active()
    return is_transformed or torch._C._is_tracing() or is_symbolic()


def is_symbolic() -> bool:
    """Whether `torch.fx.symbolic_trace` is running, under which tensor sizes cannot be compared."""
    if torch.compiler.is_compiling():
        return False
    return bool(torch.fx._symbolic_trace.is_fx_symbolic_tracing())
