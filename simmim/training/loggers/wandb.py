"""Logs to Weights & Biases: online, or to the run directory until `wandb sync` uploads it."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from pytorch_lightning.loggers import WandbLogger

from simmim.training.loggers.base import RemoteLogger, is_installed
from simmim.utils.errors import UserError
from simmim.utils.signals import INTERRUPTED, is_interrupting

# Seconds that the end of a run waits for pending uploads; what is left stays on the disk.
_LAST_WAIT = 120


class WandbLog(RemoteLogger[WandbLogger]):
    """Logs metrics, configuration and images as a run of Weights & Biases.

    Args:
        save_dir: the run directory.
        name: the run's name (None: that of the run directory).
        entity: the user or team that owns the project (None: your default).
        group: runs of one group are shown together.
        tags: tags of the run, to filter by.
        offline: write to the run directory only, without uploading.

    Raises:
        UserError: wandb is not installed.
    """

    def __init__(
        self,
        save_dir: str | Path,
        project: str = "simmim",
        name: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        offline: bool = False,
    ) -> None:
        super().__init__(Path(save_dir, "wandb"))
        # Not imported to check for it, which would take seconds on every rank.
        if not is_installed("wandb"):
            raise UserError('logger=wandb needs the package wandb; pip install "simmim[wandb]"')
        self.project = project
        self.run_name = name or Path(save_dir).name
        self.entity = entity
        self.group = group
        self.tags = list(tags)
        self.offline = offline

    @property
    def place(self) -> str:
        """The service, or the folder."""
        return f"{self.folder}/" if self.offline else "Weights & Biases"

    def connect(self) -> WandbLogger:
        """Lightning's logger, with a separate run even if this process has other runs."""
        import wandb

        return WandbLogger(
            project=self.project,
            name=self.run_name,
            save_dir=str(self.folder.parent),
            id=self.run_id,
            entity=self.entity,
            group=self.group,
            tags=self.tags,
            mode="offline" if self.offline else None,
            reinit="create_new",
            # The console output is already in the run's log file.
            settings=wandb.Settings(console="off", quiet=True, finish_timeout=_LAST_WAIT),
        )

    def find_id(self, logger: WandbLogger) -> str:
        """The run's id: eight letters and digits."""
        return str(logger.experiment.id)

    def add_picture(self, logger: WandbLogger, name: str, picture: Image.Image, step: int) -> None:
        """Logs the image with Lightning's `log_image`."""
        logger.log_image(name, [picture], step)

    def finalize(self, status: str) -> None:
        """Finishes a run that failed or was interrupted; in any other, a validation may follow."""
        if is_interrupting() and self._logger is not None:
            # After this, a non-zero exit code marks the run as preempted instead of failed.
            self.attempt(lambda logger: logger.experiment.mark_preempting())
        if status != "success":
            self._finish(exit_code=INTERRUPTED if is_interrupting() else 1)

    def close(self) -> None:
        """Finishes the run; Lightning leaves that to the end of the process."""
        self._finish(exit_code=0)

    def _finish(self, exit_code: int) -> None:
        if self._logger is not None:
            self.attempt(lambda logger: logger.experiment.finish(exit_code))
            self._logger = None
