"""Sweeps (`-m`): each job in a directory and a process of its own, and told of together at the end.

The directory is named by the job's own options, so that a sweep that is started again finds it: what is
finished there is not run again, what is not goes on. A job that fails leaves `failure.txt` there.
"""

import hashlib
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from simmim.cli import subprocesses
from simmim.training.run_dir.completed import is_finished
from simmim.training.run_dir.config_record import Composed
from simmim.utils.errors import UserError

log = logging.getLogger("simmim")

_FAILURE = "failure.txt"
# File systems take 255 bytes; a path has more parts.
_LONGEST_NAME = 120


def run_job(stage: str, composed: Composed) -> float | None:
    """Runs one job of a sweep, unless it is finished; returns its objective, None if it failed.

    A process of its own leaves nothing behind for the next one: no process group, no environment, no
    memory. What becomes of it does not become of the sweep.
    """
    run_dir, config = composed.run_dir, composed.config
    (run_dir / _FAILURE).unlink(missing_ok=True)
    finished = False
    try:
        # Other stages are quick, and what they judge may have changed.
        if config.get("resume") == "auto":
            finished = is_finished(run_dir, config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        note_failure(run_dir, str(error))
        return None
    if finished:
        log.info(f"finished before: {run_dir}")
    elif code := subprocesses.run_apart(stage, composed):
        note_failure(run_dir, f"killed by signal {-code}" if code < 0 else f"exit code {code}")
        return None
    objective = config.get("objective")
    if objective is None:
        return None
    path = run_dir / "summary.json"
    if not path.is_file():  # of several tasks of a cluster's job, the first one writes it
        return None
    value = json.loads(path.read_text())["metrics"].get(objective)
    # Metrics that are not finite stand as null: a run that diverged is the worst.
    return value if value is not None else float("inf" if is_minimised(objective) else "-inf")


def note_failure(run_dir: Path, reason: str) -> None:
    """Leaves why a job failed in its directory, unless a process of it knew better."""
    path = run_dir / _FAILURE
    if not path.exists():
        path.write_text(f"{reason}\n")


def is_minimised(objective: str) -> bool:
    """Whether less is better: of losses, as for `best.ckpt`."""
    return "loss" in objective


def job_name(options: str) -> str:
    """A directory's name for a job's own options, `optim.lr-0.001__seed-1`.

    Without characters that would have to be quoted where the directory is an option's value
    (`init.checkpoint=SWEEP/optim.lr-0.001__seed-1`). What this takes away, a digest tells apart.
    """
    if not options:
        return "job"
    plain = re.sub(r"(^|__)([^=]*)=", r"\1\2-", options)
    name = re.sub(r"[^\w.+-]+", "-", plain)
    if name == plain and len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(options.encode()).hexdigest()[:8]
    return f"{name[:_LONGEST_NAME].strip('-')}_{digest}"


OmegaConf.register_new_resolver("job_name", job_name, replace=True)


class Sweep(Callback):
    """Hydra tells it of a sweep's start and end.

    Attributes:
        folder: that of the sweep which this process runs, if it does.
    """

    folder: ClassVar[Path | None] = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuses a run directory without a name, before Hydra writes to the working directory."""
        try:
            require_run_dir(config)
        except UserError as error:
            # Hydra would only warn of an Exception, and go on.
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Finds out what names the jobs."""
        try:
            require_one_process()
            require_run_dir(config)
            folder = Path(config.hydra.sweep.dir)
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob(f"*/{_FAILURE}"):
                path.unlink()
            Sweep.folder = folder
            # A job's configuration is composed anew, with these.
            config.hydra.overrides.hydra.append(shared_options(config))
        except UserError as error:
            # Hydra would only warn of an Exception, and go on.
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Names the jobs that failed; exit code 2 if there are any."""
        self.report_failures()

    @classmethod
    def report_failures(cls) -> None:
        """Names the jobs that failed, each in one line, and exits with code 2 if there are any."""
        failures = [] if cls.folder is None else sorted(cls.folder.glob(f"*/{_FAILURE}"))
        cls.folder = None
        if failures:
            print(f"error: {len(failures)} of the sweep's jobs failed:", file=sys.stderr)
            for path in failures:
                print(f"  {path.parent}: {path.read_text().strip()}", file=sys.stderr)
            sys.exit(2)


def require_run_dir(config: DictConfig) -> None:
    """Raises UserError for a run directory that is empty or null, or has `${` in its name."""
    try:
        run_dir = OmegaConf.select(config, "run_dir")
    except OmegaConfBaseException:
        return  # told of where Hydra comes to it
    if run_dir is None:
        raise UserError("run_dir=null names no directory; leave run_dir out, or use run_dir=DIR")
    name = "sweep" if config.hydra.mode == RunMode.MULTIRUN else "run"
    given = {"run_dir": run_dir, f"hydra.{name}.dir": config.hydra[name].dir}
    for option, value in given.items():
        if not str(value).strip():
            raise UserError(
                f"{option}= is empty: is a variable not set? Use {option}=DIR, or leave it out"
            )
        if "${" in str(value):
            raise UserError(f"{option}={value}: no run directory's name can have ${{ in it")


def require_one_process() -> None:
    """Raises UserError where torchrun or srun started several processes, each with the whole sweep."""
    tasks = int(os.environ.get("SLURM_NTASKS", "1")) if "SLURM_STEP_ID" in os.environ else 1
    if "TORCHELASTIC_RUN_ID" in os.environ or tasks > 1:
        raise UserError(
            "a sweep starts the processes of its jobs itself; run it without torchrun and srun, "
            "with trainer.devices=2, or hydra/launcher=submitit_slurm"
        )


def shared_options(config: DictConfig) -> str:
    """The override that keeps what all jobs have in common out of their names."""
    typed = OmegaConf.to_container(config.hydra.overrides.task)
    assert isinstance(typed, list)
    configured = [f"{name}={value}" for name, value in (config.hydra.sweeper.params or {}).items()]
    options = OverridesParser.create().parse_overrides([*configured, *map(str, typed)])
    shared = {option.key_or_group for option in options if not option.is_sweep_override()}
    return f"hydra.job.config.override_dirname.exclude_keys=[{','.join(sorted(shared))}]"
