"""Logs to TensorBoard; a full disk ends the log, not the run."""

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger

from simmim.training.loggers.base import FaultTolerantLogger


class _InFolder(TensorBoardLogger):
    """Writes to exactly the given folder; Lightning's own logger expands `$` and `~` in its path."""

    @property
    def log_dir(self) -> str:
        """The folder itself: the version is empty and has no subfolder."""
        return str(Path(self.root_dir))


class TensorBoardLog(FaultTolerantLogger[TensorBoardLogger]):
    """Writes events to `tensorboard/` in the run directory (`save_dir`)."""

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self.folder = Path(save_dir, "tensorboard")
        self._first_step: int | None = None

    @property
    def place(self) -> str:
        """The folder."""
        return f"{self.folder}/"

    def open(self) -> TensorBoardLogger:
        """Creates Lightning's logger."""
        folder = self.folder
        return _InFolder(folder.parent, name=folder.name, version="", purge_step=self._first_step)

    def go_on_after(self, step: int) -> None:
        """Hides events of later steps; the last step's metrics are logged again."""
        self._first_step = max(step - 1, 0)

    def flush(self) -> None:
        """Writes what was logged to disk."""
        self.save()

    def add_configuration(self, logger: TensorBoardLogger, options: dict[str, Any]) -> None:
        """Logs the options as text: TensorBoard's hyper-parameters need final metrics."""
        lines = OmegaConf.to_yaml(OmegaConf.create(options)).splitlines()
        text = "\n".join(f"    {line}" for line in lines)
        logger.experiment.add_text("configuration", text, self._first_step or 0)

    def add_picture(
        self, logger: TensorBoardLogger, name: str, picture: Image.Image, step: int
    ) -> None:
        """Logs an RGB image."""
        logger.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def is_failure(self, error: Exception) -> bool:
        """True for an error of the disk, or of the event writer after such an error."""
        return isinstance(error, OSError) or isinstance(error.__cause__, OSError)
