"""Completes the last step of a stopped run on resume: logs its metrics, and validates."""

import copy
from typing import Any

import pytorch_lightning as pl


class PendingStep(pl.Callback):
    """On resume, logs the metrics of the last step and runs the validation that was due after it.

    A checkpoint is written at the end of a step, before its metrics are logged and before a validation
    that is due. So it contains these metrics, and whether a validation is pending.
    """

    def __init__(self) -> None:
        self._trainer: pl.Trainer | None = None
        self._is_after_step = False
        self._owed: dict[str, Any] = {}
        self._loops: dict[str, Any] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keeps the trainer, because `state_dict` is called without one."""
        self._trainer = trainer

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """From here on, logging and validation of this step are pending."""
        self._is_after_step = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Nothing is pending any more."""
        self._is_after_step = False

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checkpoints from here on, such as `best.ckpt`, count as saved after the validation."""
        self._is_after_step = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing is pending any more."""
        self._is_after_step = False

    @property
    def state_key(self) -> str:
        """The key of its state in checkpoints, the same as in earlier versions."""
        return "Continuation"

    def state_dict(self) -> dict[str, Any]:
        """What is pending at this moment: metrics to log, and whether to validate."""
        trainer = self._trainer
        if not self._is_after_step or trainer is None:
            return {}
        loop = trainer.fit_loop.epoch_loop
        connector = trainer._logger_connector
        fetcher = trainer.fit_loop._data_fetcher
        metrics = connector.metrics["log"] if connector.should_update_logs else {}
        assert fetcher is not None
        return {
            # Keys of the file's format: earlier versions read them too.
            "figures": {name: float(value) for name, value in metrics.items()},
            "epoch": trainer.current_epoch,
            "step": loop._batches_that_stepped,
            "validation": loop._should_check_val_fx(fetcher),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what was pending."""
        self._owed = state_dict

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps the progress of the loops, converted to the current number of batches per step."""
        steps = int(pl_module.steps_per_epoch)  # type: ignore[arg-type]
        _recount(checkpoint, steps, trainer.accumulate_grad_batches)
        self._loops = copy.deepcopy(checkpoint["loops"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the metrics of the step that the run resumes from, and validates if that is pending."""
        owed = self._owed
        self._log(trainer)
        if owed.get("validation"):
            self._validate(trainer, owed["epoch"])
        self._loops = None

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same for a run that was resumed after its last step, and does not train."""
        owed = self._owed
        self._log(trainer)
        if owed and not owed["validation"]:
            # The validation of the final weights, which follows, is logged at that step and epoch.
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
            trainer.fit_loop.epoch_progress.current.completed = owed["epoch"] + 1
        self._loops = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Makes the checkpoint's loop progress the same as in a run that was never stopped.

        After a resume at the end of an epoch, Lightning counts too few epochs as started, and
        another resume would use the image order of a wrong epoch. During the pending validation,
        Lightning's progress is already ahead; a `best.ckpt` written then gets the progress that was
        loaded.
        """
        if self._loops is not None:
            checkpoint["loops"] = copy.deepcopy(self._loops)
            return
        ended = (trainer.global_step - 1) // int(pl_module.steps_per_epoch)  # type: ignore[arg-type]
        checkpoint["epoch"] = ended
        for counted in ("total", "current"):
            checkpoint["loops"]["fit_loop"]["epoch_progress"][counted] |= {
                **dict.fromkeys(("ready", "started"), ended + 1),
                **dict.fromkeys(("processed", "completed"), ended),
            }

    def _log(self, trainer: pl.Trainer) -> None:
        owed, self._owed = self._owed, {}
        metrics = owed.get("figures")
        if not metrics:
            return
        for logger in trainer.loggers:
            logger.log_metrics(metrics | {"epoch": owed["epoch"]}, step=owed["step"])
            logger.save()

    def _validate(self, trainer: pl.Trainer, epoch: int) -> None:
        """Validates as the training loop does between two steps."""
        progress = trainer.fit_loop.epoch_progress.current
        validation = trainer.fit_loop.epoch_loop.val_loop
        counted, progress.completed = progress.completed, epoch
        validation.restarting = False
        trainer.validating = True
        validation.run()
        trainer.training = True
        progress.completed = counted


def _recount(checkpoint: dict[str, Any], steps_per_epoch: int, accumulation: int) -> None:
    """Converts the batch counts of a checkpoint to `accumulation` batches per step.

    Lightning decides by these counts which batch ends a step, and which one the epoch.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    steps = (checkpoint["global_step"] - 1) % steps_per_epoch + 1
    batches_a_step = progress["current"]["ready"] // steps
    if batches_a_step in (0, accumulation):
        return
    for counted in ("total", "current"):
        before = progress[counted]
        ready = before["ready"] // batches_a_step * accumulation
        # The batch before a checkpoint counts as processed but not yet as completed.
        progress[counted] = {name: ready - before["ready"] + n for name, n in before.items()}
