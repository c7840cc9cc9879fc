"""The device of a command without a Trainer, whether it supports bf16, and its peak memory."""

import re
import resource
import sys
from pathlib import Path

import torch

from simmim.utils.errors import UserError


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
    """Whether the current GPU computes in bf16 natively; older ones emulate it, slowly."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory in bytes: of the device if it is a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # On Linux, ru_maxrss is inherited from the process that started this one.
    status = Path("/proc/self/status")
    if status.exists() and (own := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(own[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
