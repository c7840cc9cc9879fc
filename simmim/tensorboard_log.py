"""TensorBoard's log, which ends where the disk is full, and not the run with it."""

from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from simmim.console import warn


class TensorBoardLog(TensorBoardLogger):
    """Lightning's logger. Its writer cannot go on after an error; `metrics.csv` holds the figures."""

    _has_failed = False

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Adds figures."""
        self._attempt(super().log_metrics, metrics, step)

    @rank_zero_only
    def save(self) -> None:
        """Has the disk hold what was logged."""
        self._attempt(super().save)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Closes the file."""
        self._attempt(super().finalize, status)

    def _attempt(self, action: Any, *arguments: Any) -> None:
        if self._has_failed:
            return
        try:
            action(*arguments)
        except (OSError, ValueError) as error:
            reason = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(reason, OSError):
                raise
            self._has_failed = True
            warn(f"{self.log_dir} cannot be written to ({reason}); no more is added there")
