"""Base classes of loggers: a logger that fails does not end the run."""

from abc import abstractmethod
from argparse import Namespace
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from PIL import Image
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from simmim.utils.console import warn
from simmim.utils.files import written_beside

Underlying = TypeVar("Underlying", bound=Logger)


@runtime_checkable
class ImageLogger(Protocol):
    """A logger that accepts images."""

    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Logs an image under this name."""


@runtime_checkable
class ResumableLogger(Protocol):
    """A logger that a resumed run appends to."""

    def go_on_after(self, step: int) -> None:
        """Expects whatever was logged after this step to be logged again; 0 for a new run."""


def is_installed(package: str) -> bool:
    """Whether a package is installed; a folder of its name, such as that of its logs, is not one."""
    found = find_spec(package)
    return found is not None and found.loader is not None


class FaultTolerantLogger(Logger, Generic[Underlying]):
    """Wraps a Lightning logger, which is opened on rank 0 when there is something to log.

    Its first failure is a warning and ends this log, not the run: `metrics.csv` has the metrics.
    """

    def __init__(self) -> None:
        super().__init__()
        self._logger: Underlying | None = None
        self._has_failed = False

    @property
    def name(self) -> str:
        """Lightning asks for a name."""
        return type(self).__name__

    @property
    def version(self) -> str:
        """Lightning asks for a version."""
        return ""

    @property
    @abstractmethod
    def place(self) -> str:
        """Where it logs to, for messages to the user."""

    @abstractmethod
    def open(self) -> Underlying:
        """Creates Lightning's logger."""

    @abstractmethod
    def add_picture(self, logger: Underlying, name: str, picture: Image.Image, step: int) -> None:
        """Logs an image with Lightning's logger."""

    def add_configuration(self, logger: Underlying, options: dict[str, Any]) -> None:
        """Logs the run's options with Lightning's logger."""
        logger.log_hyperparams(options)

    def is_failure(self, error: Exception) -> bool:
        """Whether to tolerate an error, such as of disk or network; others are bugs and raised."""
        return True

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Logs metrics."""
        self.attempt(lambda logger: logger.log_metrics(metrics, step))

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Logs the run's configuration."""
        options = vars(params) if isinstance(params, Namespace) else params
        self.attempt(lambda logger: self.add_configuration(logger, options))

    @rank_zero_only
    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Logs an image."""
        self.attempt(lambda logger: self.add_picture(logger, name, picture, step))

    @rank_zero_only
    def save(self) -> None:
        """Flushes what was logged."""
        if self._logger is not None:
            self.attempt(lambda logger: logger.save())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Training is over; a validation may follow."""
        if self._logger is not None:
            self.attempt(lambda logger: logger.finalize(status))

    def close(self) -> None:
        """Nothing more is logged after this."""

    def attempt(self, action: Callable[[Underlying], object]) -> None:
        """Calls `action` with Lightning's logger, unless an earlier call failed."""
        if self._has_failed:
            return
        try:
            if self._logger is None:
                self._logger = self.open()
            action(self._logger)
        except Exception as error:
            if not self.is_failure(error):
                raise
            self._has_failed = True
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            warn(f"{self.place} cannot be written to ({reason}); no more is added there")


class RemoteLogger(FaultTolerantLogger[Underlying]):
    """A logger with run ids; a resumed run reuses the id that is stored in its directory.

    Steps that a resumed run repeats appear twice in the log.

    Args:
        folder: contains `run_id`, and the files that this logger keeps on this machine.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.run_id: str | None = None

    def go_on_after(self, step: int) -> None:
        """Reads the id of this directory's run, unless the run starts from its beginning."""
        is_known = step > 0 and self._id_file.is_file()
        self.run_id = self._id_file.read_text().strip() if is_known else None

    def open(self) -> Underlying:
        """Creates Lightning's logger, with a new run or the one that is resumed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        logger = self.connect()
        self.run_id = self.find_id(logger)
        with written_beside(self._id_file) as beside:
            beside.write_text(f"{self.run_id}\n")
        return logger

    @abstractmethod
    def connect(self) -> Underlying:
        """Lightning's logger for the run `run_id`, or for a new one."""

    @abstractmethod
    def find_id(self, logger: Underlying) -> str:
        """The id of the logger's run."""

    @property
    def _id_file(self) -> Path:
        return self.folder / "run_id"
