"""Runs commands: composes the Hydra configuration, and reports user mistakes in one line.

Nothing here imports torch before a configuration is composed, so that `--help` answers at once.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from simmim.cli import arguments, sweeps
from simmim.cli.known_options import config_directory
from simmim.cli.mistakes import explain, mendable
from simmim.training.run_dir.completed import record_finished
from simmim.training.run_dir.config_record import (
    Composed,
    config_env,
    export_config,
    exported_config,
)
from simmim.utils.errors import UserError
from simmim.utils.signals import STOPPED_AT_ONCE

_FULL_ERROR = "HYDRA_FULL_ERROR"


def run_command(stage: str) -> None:
    """Composes `conf/<stage>.yaml` with the command line and runs that stage.

    A mistake that the user can fix is reported in one line on stderr, with exit code 2;
    `HYDRA_FULL_ERROR=1` shows the traceback instead.
    """
    escape_names()
    wants_traceback = os.environ.get(_FULL_ERROR, "0") not in ("", "0")
    composed = exported_config()
    if composed is not None:
        run_composed(stage, composed, wants_traceback)
        return
    try:
        sys.argv[1:] = arguments.as_overrides(sys.argv[1:], stage)
    except UserError as error:
        exit_if_mendable(error, stage)

    @hydra.main(version_base="1.3", config_path=str(config_directory()), config_name=stage)
    def command(config: DictConfig) -> float | None:
        hydra_config = HydraConfig.get()
        try:
            # The processes of a run inherit the user's own HYDRA_FULL_ERROR.
            with (
                _full_error("1" if wants_traceback else None),
                export_config(config, hydra_config) as composed,
            ):
                if hydra_config.mode == RunMode.MULTIRUN:
                    return sweeps.run_job(stage, composed)
                with config_env(composed):
                    run_stage(stage, config, str(composed.run_dir), composed.overrides)
        except Exception as error:
            if not wants_traceback:
                exit_if_mendable(error, stage)
            raise
        return None

    # With it set, Hydra raises errors instead of printing them in its own way.
    try:
        with _full_error("1"):
            command()
    except KeyboardInterrupt:
        print("stopped; the same command goes on from its last checkpoint", file=sys.stderr)
        sys.exit(STOPPED_AT_ONCE)
    except Exception as error:
        if not wants_traceback:
            exit_if_mendable(error, stage)
            # Optuna's sweeper asks for the best trial even if all have failed.
            sweeps.Sweep.report_failures()
        raise


def escape_names() -> None:
    """Makes stdout escape characters that it cannot encode, as in some file names; stderr does."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def run_composed(stage: str, composed: Composed, wants_traceback: bool) -> None:
    """Runs a configuration that another process composed: a sweep's job, or a further rank of a run."""
    configure_log(composed.job_logging)
    try:
        run_stage(stage, composed.config, str(composed.run_dir), composed.overrides)
    except Exception as error:
        mistake = mendable(error)
        reason = explain(mistake, stage) if mistake else f"{type(error).__name__}: {error}"
        sweeps.note_failure(composed.run_dir, reason)
        if not wants_traceback:
            exit_if_mendable(error, stage)
        raise


@contextmanager
def _full_error(value: str | None) -> Iterator[None]:
    """Sets `HYDRA_FULL_ERROR` within the block (None: unset), and restores it afterwards."""
    before = os.environ.pop(_FULL_ERROR, None)
    if value is not None:
        os.environ[_FULL_ERROR] = value
    try:
        yield
    finally:
        os.environ.pop(_FULL_ERROR, None)
        if before is not None:
            os.environ[_FULL_ERROR] = before


def find_stage(stage: str) -> Callable[..., Any]:
    """The function that a command calls with its configuration; imports torch."""
    function: Callable[..., Any] = getattr(import_module(f"simmim.{stage}.stage"), stage)
    return function


def run_stage(stage: str, config: DictConfig, run_dir: str, overrides: Sequence[str] = ()) -> Any:
    """Checks the configuration and calls the stage's function with it; imports torch.

    `overrides` are the options as typed, for the record of the run.
    """
    # Loader workers and other programs share the cores: an OpenMP thread that spins for long while
    # it waits keeps them from running, and one that sleeps at once is slow to wake. With these
    # settings GNU's OpenMP spins for less than 0.1 ms, and other runtimes do not spin. (The demo on
    # two cores, three rounds: 1.07 to 1.10 times the images per second of sleeping at once, 1.04 to
    # 1.17 times those of GNU's default.) A benchmark's steps have the cores to themselves and keep
    # the defaults, as in the user's own scripts.
    if stage != "benchmark" and "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    from simmim.cli import schema

    function = find_stage(stage)
    with open_dict(config):
        config.run_dir = run_dir
    schema.check(config, function)
    summary = function(**{str(name): value for name, value in config.items()})
    # Only the first of several processes writes it.
    if summary and Path(run_dir, "summary.json").is_file():
        record_finished(Path(run_dir), config, overrides)
    return summary


def exit_if_mendable(error: BaseException, stage: str) -> None:
    """Prints one line and exits with code 2 if the user can fix the error or its cause."""
    mistake = mendable(error)
    if mistake is not None:
        print(f"error: {explain(mistake, stage)}", file=sys.stderr)
        sys.exit(2)
