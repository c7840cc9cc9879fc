"""What a run's logs have in common, wherever they lead: none of them is worth the run."""

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
    """A log that takes pictures."""

    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Adds a picture to those of this name."""


@runtime_checkable
class ResumableLogger(Protocol):
    """A log that a later part of the run adds to."""

    def go_on_after(self, step: int) -> None:
        """Whatever was logged after this step will be logged again; 0 is a run from its beginning."""


def is_installed(package: str) -> bool:
    """Whether there is such a package; a folder of its name, as its logs lie in, is none."""
    found = find_spec(package)
    return found is not None and found.loader is not None


class FaultTolerantLogger(Logger, Generic[Underlying]):
    """A logger of Lightning's that is opened when there is something to log, on the first rank.

    Its first failure is told of and ends this log, not the run: `metrics.csv` holds the metrics.
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
        """Where it leads to, for the user."""

    @abstractmethod
    def open(self) -> Underlying:
        """Lightning's logger."""

    @abstractmethod
    def add_picture(self, logger: Underlying, name: str, picture: Image.Image, step: int) -> None:
        """Logs a picture there."""

    def add_configuration(self, logger: Underlying, options: dict[str, Any]) -> None:
        """Logs the run's options there."""
        logger.log_hyperparams(options)

    def is_failure(self, error: Exception) -> bool:
        """Whether this is the world's fault; else it is ours and is raised."""
        return True

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Adds metrics."""
        self.attempt(lambda logger: logger.log_metrics(metrics, step))

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Adds the run's configuration."""
        options = vars(params) if isinstance(params, Namespace) else params
        self.attempt(lambda logger: self.add_configuration(logger, options))

    @rank_zero_only
    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Adds a picture."""
        self.attempt(lambda logger: self.add_picture(logger, name, picture, step))

    @rank_zero_only
    def save(self) -> None:
        """Has what was logged reach its place."""
        if self._logger is not None:
            self.attempt(lambda logger: logger.save())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Training is over; a validation may follow."""
        if self._logger is not None:
            self.attempt(lambda logger: logger.finalize(status))

    def close(self) -> None:
        """Nothing follows."""

    def attempt(self, action: Callable[[Underlying], object]) -> None:
        """Does this with Lightning's logger, unless something failed before."""
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
    """One whose runs have ids of their own, kept in the run directory: a resumed run goes on there.

    What a resumed run logs again of steps that it had behind it stands there twice.

    Args:
        folder: holds `run_id`, and what this log keeps on this machine.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.run_id: str | None = None

    def go_on_after(self, step: int) -> None:
        """Goes on with the run that this directory's has been so far."""
        is_known = step > 0 and self._id_file.is_file()
        self.run_id = self._id_file.read_text().strip() if is_known else None

    def open(self) -> Underlying:
        """Lightning's logger, its run begun or found again."""
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
        """What the run is called there."""

    @property
    def _id_file(self) -> Path:
        return self.folder / "run_id"
