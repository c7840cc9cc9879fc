"""Sweeps (`-m`): each job has its own directory and process; failed jobs are reported at the end.

The directory is named after the job's own options, so that a sweep that is started again finds it:
finished jobs are skipped, unfinished ones are resumed. A job that fails leaves `failure.txt` there.
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
# File systems allow 255 bytes per name; this leaves room for the rest of the path.
_LONGEST_NAME = 120


def run_job(stage: str, composed: Composed) -> float | None:
    """Runs one job of a sweep, unless it is finished; returns its objective, None if it failed.

    The job runs in a subprocess, so that it leaves nothing behind for the next one (no process
    group, no environment, no memory), and its failure does not end the sweep.
    """
    run_dir, config = composed.run_dir, composed.config
    (run_dir / _FAILURE).unlink(missing_ok=True)
    finished = False
    try:
        # Other stages are quick, and the checkpoint that they evaluate may have changed.
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
    if not path.is_file():  # only the first of a cluster job's tasks writes it
        return None
    value = json.loads(path.read_text())["metrics"].get(objective)
    # Metrics that are not finite are stored as null: a run that diverged ranks last.
    return value if value is not None else float("inf" if is_minimised(objective) else "-inf")


def note_failure(run_dir: Path, reason: str) -> None:
    """Writes to a job's directory why it failed, unless the job's own process already did."""
    path = run_dir / _FAILURE
    if not path.exists():
        path.write_text(f"{reason}\n")


def is_minimised(objective: str) -> bool:
    """Whether lower is better, as for losses; the same rule as for `best.ckpt`."""
    return "loss" in objective


def job_name(options: str) -> str:
    """The name of a job's directory, from the job's own options: `optim.lr-0.001__seed-1`.

    It has no characters that would have to be quoted where the directory is an option's value
    (`init.checkpoint=SWEEP/optim.lr-0.001__seed-1`). If some are replaced, a digest keeps it
    unique.
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
    """Hydra's callback at the start and end of a sweep.

    Attributes:
        folder: the directory of the sweep that this process runs; None without a sweep.
    """

    folder: ClassVar[Path | None] = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuses a run directory without a name, before Hydra writes to the working directory."""
        try:
            require_run_dir(config)
        except UserError as error:
            # Hydra would only warn about an Exception, and continue.
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Creates the sweep's directory, removes old failures, and sets which options name jobs."""
        try:
            require_one_process()
            require_run_dir(config)
            folder = Path(config.hydra.sweep.dir)
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob(f"*/{_FAILURE}"):
                path.unlink()
            Sweep.folder = folder
            # Each job's configuration is composed again, with these overrides.
            config.hydra.overrides.hydra.append(shared_options(config))
        except UserError as error:
            # Hydra would only warn about an Exception, and continue.
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
        return  # Hydra itself reports it later
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
    """The Hydra override that leaves the options shared by all jobs out of the jobs' names."""
    typed = OmegaConf.to_container(config.hydra.overrides.task)
    assert isinstance(typed, list)
    configured = [f"{name}={value}" for name, value in (config.hydra.sweeper.params or {}).items()]
    options = OverridesParser.create().parse_overrides([*configured, *map(str, typed)])
    shared = {option.key_or_group for option in options if not option.is_sweep_override()}
    return f"hydra.job.config.override_dirname.exclude_keys=[{','.join(sorted(shared))}]"
