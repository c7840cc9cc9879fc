"""`metrics.csv`: one row a logged step, kept across resumes."""

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only


class MetricsCsv(Logger):
    """Appends metrics to `metrics.csv` in the run directory; a column a metric, empty where none.

    Rows of an earlier part of the run stay; those from the first newly logged step on are replaced,
    for a resumed run logs them again.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self.path = Path(save_dir, "metrics.csv")
        self._columns: list[str] = []
        self._opened = False
        self._row: dict[str, float] = {}

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
        """The configuration stands in `.hydra/`."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Adds to the row of this step; it is written when another begins."""
        step = -1 if step is None else step
        if step != self._row.get("step"):
            self._flush()
            self._row = {"step": step}
        self._row |= metrics

    @property
    def pending(self) -> dict[str, float]:
        """The row at hand, with its step, which is not in the file yet; empty where there is none."""
        return dict(self._row)

    def _flush(self) -> None:
        """Writes the row at hand."""
        if not self._row:
            return
        if not self._opened:
            self._rewrite(before=self._row["step"])
            self._opened = True
        new = [name for name in self._row if name not in self._columns]
        if new:
            self._rewrite(added=new)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(self._row)
        self._row = {}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes what is left."""
        self._flush()

    def _rewrite(self, *, added: list[str] | None = None, before: float = float("inf")) -> None:
        """Writes the file again with more columns, or with the rows before a step alone."""
        rows = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                reader = csv.DictReader(file)
                self._columns = list(reader.fieldnames or [])
                rows = [row for row in reader if float(row["step"]) < before]
        self._columns += added or []
        beside = self.path.with_suffix(".partial")
        with beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        beside.replace(self.path)
