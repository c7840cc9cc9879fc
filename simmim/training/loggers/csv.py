"""`metrics.csv`: one row per logged step, kept across resumes."""

import csv
from argparse import Namespace
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from simmim.utils.console import warn
from simmim.utils.files import append, written_beside


class MetricsCsv(Logger):
    """Appends metrics to `metrics.csv` in the run directory (`save_dir`), one column per metric.

    On resume, rows up to the resumed step stay; what is logged again for that step is added to its
    row.

    Attributes:
        first_step: the first new step; rows from this step on are dropped.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self.path = Path(save_dir, "metrics.csv")
        self.first_step = 0
        self._columns: list[str] = []
        self._opened = False
        self._row: dict[str, Any] = {}
        self._waiting: list[dict[str, Any]] = []
        self._waits = False

    @property
    def name(self) -> str:
        """Lightning asks for a name."""
        return "metrics"

    @property
    def version(self) -> str:
        """Lightning asks for a version."""
        return ""

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Does nothing: the configuration is stored in `.hydra/`."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Adds to the row of this step, which is written when the next row begins."""
        step = -1 if step is None else step
        if step != self._row.get("step"):
            self.flush()
            self._row = {"step": step}
        self._row |= metrics

    def go_on_after(self, step: int) -> None:
        """Drops the rows of later steps."""
        self.first_step = step

    @property
    def pending(self) -> dict[str, float]:
        """The current row, with its step, which is not in the file yet; empty if there is none."""
        return dict(self._row)

    @rank_zero_only
    def flush(self) -> None:
        """Writes the current row, to which nothing can be added after that.

        If the disk is full, this row and those after it are kept until there is room.
        """
        if self._row:
            self._waiting.append(self._row)
            self._row = {}
        if not self._waiting:
            return
        try:
            self._append(self._waiting)
        except OSError as error:
            if not self._waits:
                warn(
                    f"{self.path} cannot be written to ({error.strerror}); training goes on, and what "
                    "is logged is kept until there is room"
                )
            self._waits = True
            return
        self._waiting, self._waits = [], False

    def _append(self, rows: list[dict[str, Any]]) -> None:
        if not self._opened:
            self._open(rows[0])
        names = dict.fromkeys(chain(*rows))
        new = [name for name in names if name not in self._columns]
        if new:
            earlier = self._read()
            self._write([*self._columns, *new], earlier)
        lines = StringIO(newline="")
        csv.DictWriter(lines, self._columns).writerows(rows)
        append(self.path, lines.getvalue())
        self.first_step = int(rows[-1]["step"]) + 1

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes the last row; a validation after the end of training adds to it."""
        self.flush()
        self._opened = False

    def _open(self, first: dict[str, Any]) -> None:
        """Drops rows that will be logged again, and merges the row of the same step into `first`."""
        step = first["step"]
        rows = [row for row in self._read() if float(row["step"]) < self.first_step]
        same = [row for row in rows if float(row["step"]) == step]
        for row in same:
            first |= {name: value for name, value in row.items() if value} | first
        kept = [row for row in rows if row not in same and float(row["step"]) < step]
        self._write(self._columns, kept)
        self._opened = True

    def _read(self) -> list[dict[str, Any]]:
        """The rows in the file, without a last one that was half written when the run was killed."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            self._columns = list(reader.fieldnames or [])
            rows = [row for row in reader if None not in row.values() and None not in row]
        return rows if "step" in self._columns else []

    def _write(self, columns: list[str], rows: list[dict[str, Any]]) -> None:
        with written_beside(self.path) as beside, beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        self._columns = columns
