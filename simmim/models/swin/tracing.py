"""Whether what runs is only written down: for an export it goes the plainest way there is."""

import torch


def is_traced() -> bool:
    """Whether operators are recorded or transformed, and not only run.

    By `torch.jit.trace`, `torch.export`, `torch.onnx.export`, `torch.fx`, or a transform of
    `torch.func`. What is chosen for its speed or memory, by grad mode, device or the sizes at hand,
    would stay in a program that others run elsewhere, or be an operator that they do not know: the
    plain operators of PyTorch compute the same. `torch.compile` asks for itself.
    """
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    is_transformed = torch._C._are_functorch_transforms_active()
    return is_transformed or torch._C._is_tracing() or is_symbolic()


def is_symbolic() -> bool:
    """Whether `torch.fx.symbolic_trace` runs it, in which tensors have no sizes to compare."""
    if torch.compiler.is_compiling():
        return False
    return bool(torch.fx._symbolic_trace.is_fx_symbolic_tracing())
