"""Resolves and checks the trainer's precision and strategy by name, without a Trainer."""

from typing import Literal, get_args

from simmim.utils.devices import computes_in_bf16
from simmim.utils.errors import UserError

PRECISIONS = ("auto", "bf16-mixed", "16-mixed", "32-true")
StrategyName = Literal["auto", "ddp", "fsdp", "deepspeed_zero1"]
# Strategies that shard the training state over devices.
SHARES_TRAINING = ("fsdp", "deepspeed_zero1")


def resolve_precision(precision: str | int, accelerator: str) -> str:
    """Lightning's name of a precision; auto is bf16 on GPUs that support it, else float32.

    Raises:
        UserError: an unknown precision.
    """
    name = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}.get(
        str(precision), str(precision)
    )
    if name not in PRECISIONS:
        raise UserError(f"trainer.precision={precision} is unknown; use {', '.join(PRECISIONS)}")
    if name != "auto":
        return name
    return "bf16-mixed" if accelerator == "gpu" and computes_in_bf16() else "32-true"


def require_known(strategy: str) -> None:
    """Raises UserError for an unknown strategy."""
    if strategy not in get_args(StrategyName):
        choices = ", ".join(get_args(StrategyName))
        raise UserError(f"trainer.strategy={strategy} is unknown; use {choices}")
