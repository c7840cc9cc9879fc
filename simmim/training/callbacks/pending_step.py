"""What a stopped run had not done for its last step: log that step's metrics, and validate."""

import copy
from typing import Any

import pytorch_lightning as pl


class PendingStep(pl.Callback):
    """Logs the last step's metrics and runs the validation that was due, when a run is resumed.

    A checkpoint is written at the end of a step, before its metrics are logged and before a validation
    that is due. So it holds the metrics, and whether a validation is to come.
    """

    def __init__(self) -> None:
        self._trainer: pl.Trainer | None = None
        self._is_after_step = False
        self._owed: dict[str, Any] = {}
        self._loops: dict[str, Any] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """A state is asked for without a trainer."""
        self._trainer = trainer

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """What follows is owed from here on."""
        self._is_after_step = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """All has been done."""
        self._is_after_step = False

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What is saved from here on is saved after the validation."""
        self._is_after_step = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All has been done."""
        self._is_after_step = False

    @property
    def state_key(self) -> str:
        """The key of its state in checkpoints, which earlier versions wrote as well."""
        return "Continuation"

    def state_dict(self) -> dict[str, Any]:
        """What is owed at this moment."""
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
        """What was owed."""
        self._owed = state_dict

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps where the run stood, counted in as many batches a step as it has now."""
        steps = int(pl_module.steps_per_epoch)  # type: ignore[arg-type]
        _recount(checkpoint, steps, trainer.accumulate_grad_batches)
        self._loops = copy.deepcopy(checkpoint["loops"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the metrics of the step that the run goes on from, and validates."""
        owed = self._owed
        self._log(trainer)
        if owed.get("validation"):
            self._validate(trainer, owed["epoch"])
        self._loops = None

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same for a run that had its last step behind it, which trains no more."""
        owed = self._owed
        self._log(trainer)
        if owed and not owed["validation"]:
            # The validation of the final weights, which comes now, counts that step and its epoch.
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
            trainer.fit_loop.epoch_progress.current.completed = owed["epoch"] + 1
        self._loops = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Has the checkpoint say what one of a run that was never stopped would.

        Lightning counts fewer epochs as begun after it was resumed at the end of one, and another
        resume then takes the order of a wrong epoch. While what was owed is made up for, it has moved
        on from where the run stood; a best one that is found then stands there.
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
        """As the training loop does between two steps."""
        progress = trainer.fit_loop.epoch_progress.current
        validation = trainer.fit_loop.epoch_loop.val_loop
        counted, progress.completed = progress.completed, epoch
        validation.restarting = False
        trainer.validating = True
        validation.run()
        trainer.training = True
        progress.completed = counted


def _recount(checkpoint: dict[str, Any], steps_per_epoch: int, accumulation: int) -> None:
    """Has a checkpoint count batches as if its steps had been of so many.

    Lightning tells by this count which batch ends a step, and which one the epoch.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    steps = (checkpoint["global_step"] - 1) % steps_per_epoch + 1
    batches_a_step = progress["current"]["ready"] // steps
    if batches_a_step in (0, accumulation):
        return
    for counted in ("total", "current"):
        before = progress[counted]
        ready = before["ready"] // batches_a_step * accumulation
        # The batch that a checkpoint follows counts as processed and not yet as completed.
        progress[counted] = {name: ready - before["ready"] + n for name, n in before.items()}
