"""The device that a command without a Trainer computes on, and what this machine's GPU can do."""

import torch

from simmim.errors import UserError


def find_device(name: str) -> torch.device:
    """The device that `device=` names; `auto` is the GPU where there is one.

    Raises:
        UserError: an unknown device, or one that this machine lacks.
    """
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    if name not in ("cpu", "cuda"):
        raise UserError(f"device={name} is unknown; use auto, cpu or cuda")
    if name == "cuda" and not has_gpu:
        raise UserError("this machine has no GPU; use device=cpu")
    return torch.device(name)


def computes_in_bf16() -> bool:
    """Whether the current GPU has bf16's arithmetic: older ones imitate it, slowly."""
    return torch.cuda.is_bf16_supported(including_emulation=False)
