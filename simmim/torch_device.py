"""The device that a command without a Trainer computes on."""

from collections.abc import Sequence

import torch

from simmim.errors import UserError


def find_device(name: str, kinds: Sequence[str] = ("cuda", "mps", "cpu")) -> torch.device:
    """The device that `device=` names; `auto` is the first of these kinds that is here.

    Raises:
        UserError: an unknown kind, or one that this machine lacks.
    """
    is_here = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind in kinds if is_here[kind]))
    kind = "cuda" if name == "gpu" else name
    if kind not in kinds:
        raise UserError(f"device={name} is unknown; use auto, {', '.join(kinds)}")
    if not is_here[kind]:
        raise UserError(f"this machine has no {kind.upper()} device; use device=cpu")
    return torch.device(kind)
