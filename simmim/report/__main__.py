"""`python -m simmim.report RUN`: rewrites the report of a run, or of a sweep from its runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from simmim.cli.mistakes import mendable
from simmim.utils.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m simmim.report",
        description="Writes report.html into run directories, from what they hold; of a sweep's "
        "directory, a page that compares its runs.",
    )
    parser.add_argument("run", nargs="+", help="a run's or a sweep's directory")
    parser.add_argument(
        "--pictures", type=int, default=24, help="steps of which reconstructions are shown"
    )
    chosen = parser.parse_args(arguments)
    try:
        for folder in chosen.run:
            if not folder.strip():
                raise UserError("the run's directory is empty: is a variable not set?")
            print(write(Path(folder), chosen.pictures))
    except (UserError, OSError) as error:
        print(f"error: {mendable(error)}", file=sys.stderr)
        sys.exit(2)


def write(folder: Path, pictures: int) -> Path:
    """Writes the report of a run or of a sweep; returns its path."""
    from simmim.report.html import write_report
    from simmim.report.sweep import is_run, is_sweep, write_sweep_report

    if is_run(folder):
        return write_report(folder, pictures=pictures)
    if is_sweep(folder):
        return write_sweep_report(folder)
    raise UserError(
        f"{folder} is no run directory: it holds neither metrics.csv nor .hydra; give a run's or a "
        "sweep's directory"
    )


if __name__ == "__main__":
    main()
