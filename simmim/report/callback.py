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

from simmim.analysis.position_bias import BlockAttention, describe_attention, is_of_attention
from simmim.checkpoints.metadata import describe_encoder
from simmim.report.html import REPORT, write_report
from simmim.report.run_record import FACTS, RunFacts, State, write_facts
from simmim.training.loggers.csv import MetricsCsv
from simmim.training.run_dir.summary import git_revision, package_versions
from simmim.training.task import TrainingTask
from simmim.utils.console import say, warn
from simmim.utils.errors import UserError
from simmim.utils.signals import Interrupted

# Of a run's time, so much may go into its report while it goes on.
_SHARE_OF_TIME = 0.01


class RunReport(pl.Callback):
    """Writes `report.html` after validations and checkpoints, and however the run ends.

    While the run goes on, at most a hundredth of its time goes into that. Rank 0 writes. A report that
    cannot be written is told of once, and the run goes on. Where a run begins anew in the directory of
    an earlier one and fails before it trains, all is as that one left it, and so is its report.

    Args:
        pictures: reconstructions of so many steps are shown, evenly spread.

    Raises:
        UserError: no picture, or fewer.
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
        """Notes what the run is; `untrained` are validation metrics from before training."""
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
        self.facts |= pl_module.report_facts()  # type: ignore[typeddict-item]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """There is a page from the first step on."""
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
        """Writes where a checkpoint came without a validation."""
        if self._has_checkpoint:
            self._write_if_cheap(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes with the new metrics and pictures."""
        if trainer.state.fn == "fit":
            self._look(pl_module)
            self._write_if_cheap(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Has a page written once the checkpoint stands, for ranks may be writing it together."""
        self._has_checkpoint = True

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Says how the run ended."""
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
        """The page of a run that is over, its weights and summary written."""
        if self._write("finished"):
            say(f"report {self.run_dir / REPORT}")

    @rank_zero_only
    def _write_if_cheap(self, trainer: pl.Trainer) -> None:
        self._has_checkpoint = False
        if time.monotonic() >= self._next_time:
            self._write("running", trainer)

    @rank_zero_only
    def _write(self, state: State, trainer: pl.Trainer | None = None) -> bool:
        """Whether the page could be written; without a trainer, of what the run has left."""
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
            # Whatever it is, training is worth more, and so is an error that the page was to tell.
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
                f"goes on, and python -m simmim.report {self.run_dir} makes it anew"
            )

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
