"""The callback that writes `report.html` during training."""

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

from simmim.analysis.position_bias import BlockAttention, describe_attention, is_of_attention
from simmim.checkpoints.metadata import describe_encoder
from simmim.report.html import REPORT, write_report
from simmim.report.run_record import FACTS, RunFacts, State, write_facts
from simmim.training.loggers.csv import MetricsCsv
from simmim.training.module import TrainingModule
from simmim.training.run_dir.summary import git_revision, package_versions
from simmim.utils.console import say, warn
from simmim.utils.errors import UserError
from simmim.utils.signals import Interrupted

# The maximum share of a run's time spent on its report during training.
_SHARE_OF_TIME = 0.01


class RunReport(pl.Callback):
    """Writes `report.html` after validations and checkpoints, and however the run ends.

    During training this takes at most 1 % of the run's time, and only rank 0 writes. If the report
    cannot be written, a warning is logged once and the run continues. If a new run in the directory
    of an earlier one fails before it trains, the earlier run's files and report are left unchanged.

    Args:
        pictures: the number of steps, evenly spaced, whose reconstructions are shown.

    Raises:
        UserError: `pictures` is not positive.
    """

    def __init__(self, run_dir: str | Path, pictures: int = 24) -> None:
        if pictures < 1:
            raise UserError(f"report.pictures {pictures} is not positive; use 24")
        self.run_dir = Path(run_dir)
        self.pictures = pictures
        self.facts = RunFacts()
        self._attention: list[BlockAttention] = []
        self._next_time = 0.0
        self._has_begun = False
        self._has_checkpoint = False
        self._has_warned = False

    def begin(self, stage: str, untrained: Mapping[str, float] | None = None) -> None:
        """Records the run's stage; `untrained` are validation metrics from before training."""
        self.facts["stage"] = stage
        if untrained:
            self.facts["untrained"] = dict(untrained)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Records the environment of the run and its planned length."""
        assert isinstance(pl_module, TrainingModule)
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
        self.facts |= pl_module.report_facts()  # type: ignore[typeddict-item]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the first report before the first step."""
        self._has_begun = True
        self._look(pl_module)
        self._write("running", trainer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Writes the report after a checkpoint that was saved without a validation."""
        if self._has_checkpoint:
            self._write_if_cheap(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the report with the new metrics and reconstructions."""
        if trainer.state.fn == "fit":
            self._look(pl_module)
            self._write_if_cheap(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Requests a report for after the checkpoint, which several ranks may be writing together."""
        self._has_checkpoint = True

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Writes the report with how the run ended."""
        begins_anew = not self._has_begun and trainer.ckpt_path is None
        if begins_anew and (self.run_dir / FACTS).is_file():
            return
        if isinstance(exception, (Interrupted, KeyboardInterrupt)):
            self._write("interrupted", trainer)
            return
        lines = str(exception).splitlines()
        self.facts["reason"] = f"{type(exception).__name__}: {lines[0] if lines else ''}"
        self._write("failed", trainer)

    @rank_zero_only
    def finish(self) -> None:
        """Writes the final report, after the weights and the summary."""
        if self._write("finished"):
            say(f"report {self.run_dir / REPORT}")

    @rank_zero_only
    def _write_if_cheap(self, trainer: pl.Trainer) -> None:
        self._has_checkpoint = False
        if time.monotonic() >= self._next_time:
            self._write("running", trainer)

    @rank_zero_only
    def _write(self, state: State, trainer: pl.Trainer | None = None) -> bool:
        """Writes the report and returns whether that succeeded; without a trainer, from files only."""
        started = time.monotonic()
        self.facts |= {"state": state, "updated": _now()}
        loggers = trainer.loggers if trainer else []
        log = next((log for log in loggers if isinstance(log, MetricsCsv)), None)
        attention = self._attention if trainer else None
        is_written = True
        try:
            write_facts(self.run_dir, self.facts)
            write_report(
                self.run_dir,
                pictures=self.pictures,
                pending=log.pending if log else None,
                first_step=log.first_step if log else None,
                attention=attention,
            )
        except Exception as error:
            # A failing report must neither stop training nor hide the error being reported.
            is_written = False
            self._tell(error)
        ended = time.monotonic()
        self._next_time = ended + (ended - started) / _SHARE_OF_TIME
        return is_written

    def _tell(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            warn(
                f"{self.run_dir / REPORT} cannot be written ({type(error).__name__}: {error}); the run "
                f"goes on, and python -m simmim.report {self.run_dir} writes it again"
            )

    def _look(self, pl_module: pl.LightningModule) -> None:
        """Collects attention parameters; must run on every rank, since weights may be sharded."""
        assert isinstance(pl_module, TrainingModule)
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
