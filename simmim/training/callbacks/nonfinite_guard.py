"""Skips and records steps with a non-finite loss or gradient; too many of them end the run."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch

from simmim.training.callbacks.loss_spikes import SpikeDetector
from simmim.training.callbacks.nonfinite_origin import (
    Finding,
    Origin,
    all_images,
    all_suspects,
    find,
    first,
)
from simmim.training.module import TrainingModule
from simmim.utils.console import warn
from simmim.utils.errors import UserError
from simmim.utils.files import append, as_json, written_beside

# At this loss scale or below, the scale is not the reason that fp16 gradients overflow.
_SMALLEST_SCALE = 1.0
_SHOWN_IMAGES = 3


class NonFiniteGuard(pl.Callback):
    """Skips steps with a non-finite loss or gradient, and warns of them and of loss spikes.

    A skipped step changes no weight, optimiser state or weight average; step count, schedule and
    data advance as after any other. Each such step and spike is written to `unusual_steps.jsonl` in
    the run directory, with its images, its blocks' amplitudes, and what was not finite first. If
    gradients overflow only because of fp16's loss scale, the step is skipped without a warning and
    the scale lowered. DeepSpeed manages its gradients and skips steps by itself; there the first
    non-finite loss ends the run.

    For this check each step waits for the device once, before its weights change.

    Args:
        max_skipped: number of skipped steps in a row that ends the run.
        spike_factor: a loss above this many times the median of the last 100 is a spike (None:
            never).

    Raises:
        UserError: an argument out of range; in training, `max_skipped` skipped steps in a row.
    """

    def __init__(
        self, run_dir: str | Path, max_skipped: int = 10, spike_factor: float | None = 3.0
    ) -> None:
        if max_skipped < 1:
            raise UserError(f"guard.max_skipped {max_skipped} is not positive; use 10")
        self.path = Path(run_dir, "unusual_steps.jsonl")
        self.max_skipped = max_skipped
        self.spikes = SpikeDetector(spike_factor)
        self.in_a_row = 0
        self._waiting: list[str] = []  # records to write once the disk has room

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Removes the records of steps that a resumed run repeats."""
        if not trainer.is_global_zero or not self.path.exists():
            return
        kept = [
            line for line in self.path.read_text().splitlines() if _step(line) < trainer.global_step
        ]
        try:
            with written_beside(self.path) as beside:
                beside.write_text("".join(f"{line}\n" for line in kept))
        except OSError as error:
            warn(
                f"{self.path} cannot be written to ({error.strerror}); steps may stand there twice"
            )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Checks loss and gradient norm of the step before its weights change."""
        assert isinstance(pl_module, TrainingModule)
        metrics = pl_module.measure_step(optimizer)
        if metrics is None:
            return
        # A norm that is not known (DeepSpeed) counts as finite.
        loss, norm = metrics.loss, metrics.gradient_norm or 0.0
        if math.isfinite(loss) and math.isfinite(norm):
            self.in_a_row = 0
            if self.spikes.begins(loss):
                self._tell_spike(trainer, pl_module, loss, norm)
            return
        if math.isfinite(loss) and _scale(trainer) > _SMALLEST_SCALE:
            pl_module.skip_step(optimizer)
            return
        self.in_a_row += 1
        findings = find(trainer, pl_module, is_usual=False)
        pl_module.skip_step(optimizer)
        self._tell_skipped(trainer, findings, loss, norm)
        if self.in_a_row >= self.max_skipped or metrics.gradient_norm is None:
            self._stop(trainer, findings)

    @property
    def state_key(self) -> str:
        """The key of its state in checkpoints, the same as in earlier versions."""
        return "Guard"

    def state_dict(self) -> dict[str, Any]:
        """The number of skipped steps in a row, and the recent losses."""
        return {
            "in_a_row": self.in_a_row,
            "losses": self.spikes.losses,
            "is_high": self.spikes.is_high,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        self.in_a_row = state_dict["in_a_row"]
        self.spikes = SpikeDetector(
            self.spikes.factor, state_dict["losses"], is_high=state_dict["is_high"]
        )

    def _tell_spike(
        self, trainer: pl.Trainer, task: TrainingModule, loss: float, norm: float
    ) -> None:
        findings = find(trainer, task, is_usual=True)
        self._write(trainer, "spike", findings, loss, norm)
        warn(
            f"step {trainer.global_step}: the loss is {loss:.4g}, "
            f"{loss / self.spikes.median:.1f} times the last ones' median; "
            f"images {_show(all_images(findings))}; all in {self.path}"
        )

    def _tell_skipped(
        self, trainer: pl.Trainer, findings: list[Finding], loss: float, norm: float
    ) -> None:
        self._write(trainer, "skipped", findings, loss, norm)
        origin = first(findings).origin
        assert origin is not None
        what = "gradient" if math.isfinite(loss) else "loss"
        value = norm if math.isfinite(loss) else loss
        suspects = all_suspects(findings)
        warn(
            f"step {trainer.global_step} is skipped and changes no weight: its {what} is {value}; "
            f"first not finite: {origin.name}; images {_show(suspects or all_images(findings))}; "
            f"all in {self.path}"
        )

    def _stop(self, trainer: pl.Trainer, findings: list[Finding]) -> NoReturn:
        origin = first(findings).origin
        assert origin is not None
        count = f"{self.in_a_row} steps in a row" if self.in_a_row > 1 else "a step"
        raise UserError(
            f"{count} had no finite loss or gradient and changed no weight, the last one step "
            f"{trainer.global_step}; first not finite: {origin.name}; {_way_out(origin, trainer)} "
            f"({self.path} tells more)"
        )

    def _write(
        self, trainer: pl.Trainer, event: str, findings: list[Finding], loss: float, norm: float
    ) -> None:
        if not trainer.is_global_zero:
            return
        seen = first(findings)
        record = {
            "step": trainer.global_step,
            "event": event,
            "loss": _json(loss),
            "gradient_norm": _json(norm),
            "first_not_finite": seen.origin.name if seen.origin else None,
            "suspects": all_suspects(findings),
            "amplitudes": {
                block: {key: _json(value) for key, value in amplitude._asdict().items()}
                for block, amplitude in seen.amplitudes.items()
            },
            "images": all_images(findings),
        }
        self._waiting.append(as_json(record, indent=None) + "\n")
        try:
            append(self.path, "".join(self._waiting))
        except OSError as error:
            if len(self._waiting) == 1:
                warn(f"{self.path} cannot be written to ({error.strerror}); it waits for room")
            return
        self._waiting = []


def _scale(trainer: pl.Trainer) -> float:
    """The loss scale of fp16; 1 in other precisions."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else scaler.get_scale()


def _show(images: list[str]) -> str:
    shown = ", ".join(images[:_SHOWN_IMAGES])
    more = len(images) - _SHOWN_IMAGES
    return f"{shown} and {more} more" if more > 0 else shown


def _way_out(origin: Origin, trainer: pl.Trainer) -> str:
    if origin.kind == 0:
        return "no step mends weights: go on from an earlier checkpoint, or start from another one"
    if trainer.precision == "16-mixed":
        return "use trainer.precision=bf16-mixed or 32-true"
    return (
        "look at the images that it named, or lower optim.lr or optim.clip_norm and go on from an "
        "earlier checkpoint with resume_force=true"
    )


def _json(value: float) -> float | str:
    """The number, or its text if it is not finite, which JSON cannot represent."""
    return value if math.isfinite(value) else str(value)


def _step(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except ValueError:  # the process was killed while it wrote the line
        return math.inf
