"""Commands: a Hydra configuration in, one clear line out for whatever the user can mend.

Nothing here imports torch before a configuration is composed, so that `--help` answers at once.
"""

import difflib
import errno
import os
import re
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
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from simmim import sweeps
from simmim.composed import Composed, hand_over, handed_over, inherited
from simmim.errors import DoesNotFitError, UserError
from simmim.finished import record_finished
from simmim.interruption import STOPPED_AT_ONCE

_FULL_ERROR = "HYDRA_FULL_ERROR"
# What a disk says that is full or cannot be written to, and the way out.
_UNWRITABLE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room there"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "change its permissions"),
}
# Where a command's function is that is not in `stages`: no command waits for what others import.
_HOMES = {
    "analysis": "simmim.diagnosing",
    "benchmark": "simmim.benchmarking.race",
    "check": "simmim.checking",
    "evaluate": "simmim.evaluation",
    "export": "simmim.exporting",
    "plan": "simmim.planning",
    "reconstruct": "simmim.reconstructing",
}
# Hydra's plugins that are installed with an extra.
_EXTRAS = {"submitit_local": "submitit", "submitit_slurm": "submitit", "optuna": "optuna"}


def config_directory() -> Path:
    """`conf/`: inside the package where a wheel put it, beside the package in a checkout."""
    package = Path(__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def run_command(stage: str) -> None:
    """Composes `conf/<stage>.yaml` with the command line and runs that stage.

    A mistake that the user can mend is one line on stderr and exit code 2; `HYDRA_FULL_ERROR=1`
    shows the traceback instead.
    """
    escape_names()
    wants_traceback = os.environ.get(_FULL_ERROR, "0") not in ("", "0")
    composed = handed_over()
    if composed is not None:
        run_composed(stage, composed, wants_traceback)
        return

    @hydra.main(version_base="1.3", config_path=str(config_directory()), config_name=stage)
    def command(config: DictConfig) -> float | None:
        hydra_config = HydraConfig.get()
        try:
            # The processes of a run inherit the user's own choice.
            with (
                _full_error("1" if wants_traceback else None),
                hand_over(config, hydra_config) as composed,
            ):
                if hydra_config.mode == RunMode.MULTIRUN:
                    return sweeps.run_job(stage, composed)
                with inherited(composed):
                    run_stage(stage, config, str(composed.run_dir), composed.overrides)
        except Exception as error:
            if not wants_traceback:
                exit_if_mendable(error, stage)
            raise
        return None

    # Hydra then lets errors through instead of printing them in its own way.
    try:
        with _full_error("1"):
            command()
    except KeyboardInterrupt:
        print("stopped; the same command goes on from its last checkpoint", file=sys.stderr)
        sys.exit(STOPPED_AT_ONCE)
    except Exception as error:
        if not wants_traceback:
            exit_if_mendable(error, stage)
            # Optuna's sweeper asks which trial is the best even where all have failed.
            sweeps.Sweep.report_failures()
        raise


def escape_names() -> None:
    """Has standard output escape what is no character, as in some names of files; errors do so."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def run_composed(stage: str, composed: Composed, wants_traceback: bool) -> None:
    """Runs what another process composed: a job of a sweep, or a run's part on a further device."""
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
    """Sets Hydra's switch within the block (None: unset), and puts it back after."""
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
    function: Callable[..., Any] = getattr(import_module(_HOMES.get(stage, "simmim.stages")), stage)
    return function


def run_stage(stage: str, config: DictConfig, run_dir: str, overrides: Sequence[str] = ()) -> Any:
    """Checks the configuration and calls the stage's function with it; imports torch.

    `overrides` are what was typed, for the record.
    """
    # Loader workers and other programs share the cores: a thread that spins for long while it waits
    # for the others keeps them from running, and one that sleeps at once is slow to wake. GNU's OpenMP
    # spins for less than 0.1 ms (the demo on two cores, three rounds: 1.07 to 1.10 times the images a
    # second of sleeping at once, 1.04 to 1.17 times those of its own choice), others not at all.
    # A benchmark's steps share them with nothing, and are to be as everyone's own scripts run them.
    if stage != "benchmark" and "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    from simmim import configuration

    function = find_stage(stage)
    with open_dict(config):
        config.run_dir = run_dir
    configuration.check(config, function)
    summary = function(**{str(name): value for name, value in config.items()})
    # The first of several processes has it.
    if summary and Path(run_dir, "summary.json").is_file():
        record_finished(Path(run_dir), config, overrides)
    return summary


def exit_if_mendable(error: BaseException, stage: str) -> None:
    """Prints one line and exits with code 2 if the error, or what caused it, is the user's to mend."""
    mistake = mendable(error)
    if mistake is not None:
        print(f"error: {explain(mistake, stage)}", file=sys.stderr)
        sys.exit(2)


def mendable(error: BaseException) -> BaseException | None:
    """The error, or what caused it, if the user can mend it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__
    if cause is not None:
        return cause
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        return UserError(
            f"{error.filename or 'a file of the run'}: {error.strerror}; "
            f"{_UNWRITABLE[error.errno]}, or use another path"
        )
    if isinstance(error, ValueError) and str(error).startswith("Config group override must"):
        return UserError(
            "a group of options, such as model or experiment, cannot be null; leave it out"
        )
    composing = isinstance(error, (HydraException, OmegaConfBaseException))
    return error if composing and not isinstance(error, InstantiationException) else None


def explain(error: BaseException, stage: str) -> str:
    """One line for a mistake: the value, the constraint, the way out."""
    # What a loader's worker raises arrives with the worker's traceback before it.
    message = str(error).rpartition(f"{type(error).__name__}: ")[2]
    if isinstance(error, DoesNotFitError):
        return message
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        if group.startswith("hydra/") and choice in _EXTRAS:
            return f'{group}={choice} is not installed; pip install "simmim[{_EXTRAS[choice]}]"'
        return f"{group}={choice} is unknown; use {', '.join(sorted(error.options))}"
    if unknown := re.search(r"Could not override '([^']+)'", message):
        return _unknown_option(unknown[1], list(_option_names(stage)))
    if unknown := re.search(r"Could not find '([^']+)/([^'/]+)'", message):
        choices = re.findall(r"^\t(\S+)$", message, re.MULTILINE)
        return f"{unknown[1]}={unknown[2]} is unknown; use {', '.join(sorted(choices))}"
    return "; ".join(line.strip() for line in message.splitlines() if line.strip())


def _unknown_option(option: str, known_options: list[str]) -> str:
    close = difflib.get_close_matches(option, known_options, n=3, cutoff=0.6)
    last = option.rpartition(".")[2]
    same_name = [name for name in known_options if name.rpartition(".")[2] == last]
    meant = list(dict.fromkeys(same_name + close))[:3]
    hint = f"did you mean {' or '.join(meant)}?" if meant else "--cfg job shows all options"
    return f"{option} is no option; {hint}"


def _option_names(stage: str) -> Iterator[str]:
    """Dotted names of all options, with the default choices."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_directory())):
        config = OmegaConf.to_container(hydra.compose(config_name=stage), resolve=False)
    yield from _names(config, "")


def _names(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{prefix}{name}"
            yield from _names(value, f"{prefix}{name}.")
