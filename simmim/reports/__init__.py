"""A run's page: what it learned, how well, and on what, in one file that opens anywhere."""

from simmim.reports.accuracy import ClassificationReport
from simmim.reports.callback import RunReport
from simmim.reports.page import write_report
from simmim.reports.sweep import is_run, is_sweep, write_sweep_report

__all__ = [
    "ClassificationReport",
    "RunReport",
    "is_run",
    "is_sweep",
    "write_report",
    "write_sweep_report",
]
