"""Logs to MLflow: to a tracking server, or to a database in the run directory."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from pytorch_lightning.loggers import MLFlowLogger

from simmim.training.loggers.base import RemoteLogger, is_installed
from simmim.utils.errors import UserError
from simmim.utils.signals import is_interrupting


class MlflowLog(RemoteLogger[MLFlowLogger]):
    """Logs metrics, configuration and images as an MLflow run.

    Args:
        save_dir: the run directory.
        experiment: the MLflow experiment that the run belongs to.
        name: the run's name (None: that of the run directory).
        tracking_uri: a server or database (None: `MLFLOW_TRACKING_URI` if it is set, else
            `mlflow/mlflow.db` in the run directory).
        tags: tags of the run, to filter by in MLflow.

    Raises:
        UserError: MLflow is not installed.
    """

    def __init__(
        self,
        save_dir: str | Path,
        experiment: str = "simmim",
        name: str | None = None,
        tracking_uri: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(Path(save_dir, "mlflow").absolute())
        # Not imported to check for it, which would take seconds on every rank.
        if not is_installed("mlflow"):
            raise UserError('logger=mlflow needs the package mlflow; pip install "simmim[mlflow]"')
        self.experiment = experiment
        self.run_name = name or Path(save_dir).name
        given = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self.tracking_uri = given or f"sqlite:///{self.folder / 'mlflow.db'}"
        self.is_local = not given
        self.tags = dict(tags or {})

    @property
    def place(self) -> str:
        """The database or server."""
        return f"MLflow's {self.tracking_uri}"

    def connect(self) -> MLFlowLogger:
        """Lightning's logger; a run that had ended is marked as running again.

        It gives up on a silent server after half a minute, because the other ranks wait.
        """
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        logger = MLFlowLogger(
            experiment_name=self.experiment,
            run_name=self.run_name,
            tracking_uri=self.tracking_uri,
            tags=self.tags,
            artifact_location=(self.folder / "artifacts").as_uri() if self.is_local else None,
            run_id=self.run_id,
        )
        if self.run_id is not None:
            logger.experiment.update_run(self.run_id, status="RUNNING")
        return logger

    def finalize(self, status: str) -> None:
        """Marks an interrupted run as killed, not as failed."""
        super().finalize("KILLED" if is_interrupting() else status)

    def find_id(self, logger: MLFlowLogger) -> str:
        """The run's id: 32 hexadecimal digits."""
        return str(logger.run_id)

    def add_configuration(self, logger: MLFlowLogger, options: dict[str, Any]) -> None:
        """Logs options that are not logged yet: MLflow does not allow changing a parameter."""
        known = logger.experiment.get_run(logger.run_id).data.params
        flat = {name: value for name, value in _flat(options) if name not in known}
        logger.log_hyperparams(flat)

    def add_picture(self, logger: MLFlowLogger, name: str, picture: Image.Image, step: int) -> None:
        """Logs the image of this step among the run's artifacts."""
        logger.experiment.log_image(logger.run_id, picture, key=name, step=step)


def _flat(options: Mapping[str, Any], path: str = "") -> Any:
    """Dotted option names, as on the command line, with their values."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
