"""TensorBoard's log, which ends where the disk is full, and not the run with it."""

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger

from simmim.training.loggers.base import FaultTolerantLogger


class _InFolder(TensorBoardLogger):
    """Writes to the folder that it is told; Lightning's own takes `$` and `~` in it for variables."""

    @property
    def log_dir(self) -> str:
        """Of no version, which is the empty text here."""
        return str(Path(self.root_dir))


class TensorBoardLog(FaultTolerantLogger[TensorBoardLogger]):
    """Events in `tensorboard/` below the run directory, which is `save_dir`."""

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self.folder = Path(save_dir, "tensorboard")
        self._first_step: int | None = None

    @property
    def place(self) -> str:
        """The folder."""
        return f"{self.folder}/"

    def open(self) -> TensorBoardLogger:
        """Lightning's logger."""
        folder = self.folder
        return _InFolder(folder.parent, name=folder.name, version="", purge_step=self._first_step)

    def go_on_after(self, step: int) -> None:
        """Events of later steps are hidden; the last step's metrics are logged again."""
        self._first_step = max(step - 1, 0)

    def flush(self) -> None:
        """Has the disk hold what was logged."""
        self.save()

    def add_configuration(self, logger: TensorBoardLogger, options: dict[str, Any]) -> None:
        """As text: what TensorBoard calls hyper-parameters goes with final metrics only."""
        lines = OmegaConf.to_yaml(OmegaConf.create(options)).splitlines()
        text = "\n".join(f"    {line}" for line in lines)
        logger.experiment.add_text("configuration", text, self._first_step or 0)

    def add_picture(
        self, logger: TensorBoardLogger, name: str, picture: Image.Image, step: int
    ) -> None:
        """In colours."""
        logger.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def is_failure(self, error: Exception) -> bool:
        """An error of the disk, or of the writer that stumbled over one before."""
        return isinstance(error, OSError) or isinstance(error.__cause__, OSError)
