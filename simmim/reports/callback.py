"""`report.html` while a run goes on."""

import platform
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch.distributed.tensor import DTensor

from simmim.callbacks import peak_memory_bytes
from simmim.checkpoints.description import describe_encoder
from simmim.console import say
from simmim.errors import UserError
from simmim.interruption import Interrupted
from simmim.metrics_csv import MetricsCsv
from simmim.reports.attention import BlockAttention, describe_attention, is_of_attention
from simmim.reports.page import write_report
from simmim.reports.record import RunFacts, State, write_facts
from simmim.summary import git_revision, package_versions
from simmim.tasks import ClassificationTask, SimMIMTask
from simmim.tasks.training import TrainingTask

# Of a run's time, so much may go into its report while it goes on.
_SHARE_OF_TIME = 0.01


class RunReport(pl.Callback):
    """Writes `report.html` after validations and checkpoints, and however the run ends.

    While the run goes on, at most a hundredth of its time goes into that. Rank 0 writes. Logs
    `train/peak_memory_bytes`, of this process or its device.

    Args:
        pictures: reconstructions of so many steps are shown, evenly spread.
    """

    def __init__(self, run_dir: str | Path, pictures: int = 24) -> None:
        if pictures < 1:
            raise UserError(f"report.pictures {pictures} is not positive; use 24")
        self.run_dir = Path(run_dir)
        self.pictures = pictures
        self.facts = RunFacts()
        self._attention: list[BlockAttention] = []
        self._next_time = 0.0

    def begin(self, stage: str, untrained: Mapping[str, float] | None = None) -> None:
        """Notes what the run is; `untrained` are held-out figures from before training."""
        self.facts["stage"] = stage
        if untrained:
            self.facts["untrained"] = dict(untrained)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes where the run runs, and how long it is to be."""
        assert isinstance(pl_module, TrainingTask)
        device = trainer.strategy.root_device
        is_gpu = device.type == "cuda"
        self.facts |= {
            "started": _now(),
            "total_steps": pl_module.total_steps,
            "effective_batch": (
                pl_module.batch_size * trainer.world_size * trainer.accumulate_grad_batches
            ),
            "git_revision": git_revision(),
            "python": platform.python_version(),
            "packages": package_versions(),
            "platform": platform.platform(terse=True),
            "device": torch.cuda.get_device_name(device) if is_gpu else device.type.upper(),
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
        }
        if isinstance(pl_module, SimMIMTask):
            masks = pl_module.mask_generator
            self.facts["hidden_share"] = masks.num_masked / masks.num_patches
        if isinstance(pl_module, ClassificationTask):
            self.facts["classes"] = len(pl_module.classes)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """There is a page from the first step on."""
        self._look(pl_module)
        self._write(trainer, "running")

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Logs the memory."""
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            peak = peak_memory_bytes(trainer.strategy.root_device)
            pl_module.log("train/peak_memory_bytes", float(peak), batch_size=1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes with the new figures and pictures."""
        if trainer.state.fn == "fit":
            self._look(pl_module)
            self._write_if_cheap(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writes where a checkpoint comes without a validation."""
        self._write_if_cheap(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Says how the run ended."""
        if isinstance(exception, (Interrupted, KeyboardInterrupt)):
            self._write(trainer, "interrupted")
            return
        lines = str(exception).splitlines()
        self.facts["reason"] = f"{type(exception).__name__}: {lines[0] if lines else ''}"
        self._write(trainer, "failed")

    @rank_zero_only
    def finish(self) -> None:
        """The page of a run that is over, its weights and summary written."""
        self._note("finished")
        write_report(self.run_dir, pictures=self.pictures)
        say(f"report {self.run_dir / 'report.html'}")

    @rank_zero_only
    def _write_if_cheap(self, trainer: pl.Trainer) -> None:
        if time.monotonic() >= self._next_time:
            self._write(trainer, "running")

    @rank_zero_only
    def _write(self, trainer: pl.Trainer, state: State) -> None:
        started = time.monotonic()
        self._note(state)
        row = next((log.pending for log in trainer.loggers if isinstance(log, MetricsCsv)), None)
        write_report(self.run_dir, pictures=self.pictures, pending=row, attention=self._attention)
        ended = time.monotonic()
        self._next_time = ended + (ended - started) / _SHARE_OF_TIME

    def _note(self, state: State) -> None:
        self.facts |= {"state": state, "updated": _now()}
        write_facts(self.run_dir, self.facts)

    def _look(self, pl_module: pl.LightningModule) -> None:
        """What attention has learned; every rank comes, for each may hold a part of the weights."""
        assert isinstance(pl_module, TrainingTask)
        encoder = pl_module.model.encoder
        weights = {
            name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            for name, tensor in encoder.named_parameters()
            if is_of_attention(name)
        }
        described = describe_encoder(encoder, pl_module.normalisation)
        self._attention = describe_attention(
            weights, described["arguments"], described["window_sizes"]
        )


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
