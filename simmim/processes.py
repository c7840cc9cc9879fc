"""What the processes of one run share: its configuration, and the directory that it writes to.

A configuration is composed once, and resolved. The processes that Lightning starts for further
devices, and that of a sweep's job, read it from the run directory; an environment variable tells them
where. Those that torchrun or srun starts compose it each for itself, and agree on the start's name.
"""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from simmim.interruption import INTERRUPTED, SIGNALS, Interrupted

_CONFIGURATION = "SIMMIM_CONFIGURATION"
# For a last checkpoint, before a scheduler's patience ends.
_SECONDS_TO_END = 60.0


class Composed(NamedTuple):
    """A configuration as it runs: nothing in it is left to resolve.

    Attributes:
        path: the file that it stands in.
        config: the stage's options; `run_dir` is absolute.
        overrides: what was typed.
        job_logging: Hydra's, for its handlers to write to the same files.
    """

    path: Path
    config: DictConfig
    overrides: list[str]
    job_logging: DictConfig

    @property
    def run_dir(self) -> Path:
        """Where the run writes."""
        return Path(self.config.run_dir)


def hand_over(config: DictConfig, hydra_config: Any) -> Composed:
    """Writes the configuration of a job of Hydra's, resolved, for the other processes of its run."""
    run_dir = Path(hydra_config.runtime.output_dir)
    path = run_dir / ".hydra" / "resolved.yaml"
    options = OmegaConf.to_container(config, resolve=True)
    assert isinstance(options, dict)
    content = {
        "config": options | {"run_dir": str(run_dir)},
        "overrides": OmegaConf.to_container(hydra_config.overrides.task),
        "job_logging": OmegaConf.to_container(hydra_config.job_logging, resolve=True),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Each process of torchrun writes it; none must read another's half.
    with NamedTemporaryFile("w", dir=path.parent, delete=False) as beside:
        beside.write(OmegaConf.to_yaml(OmegaConf.create(content)))
    os.replace(beside.name, path)
    return read(path)


def read(path: Path) -> Composed:
    """A configuration that was handed over."""
    content = OmegaConf.load(path)
    assert isinstance(content, DictConfig)
    overrides = [str(override) for override in content.overrides]
    return Composed(path, content.config, overrides, content.job_logging)


def handed_over() -> Composed | None:
    """The configuration that this process was started with, if another one composed it."""
    path = os.environ.get(_CONFIGURATION)
    return None if path is None else read(Path(path))


@contextmanager
def inherited(composed: Composed) -> Iterator[None]:
    """Processes that are started within the block run with this configuration."""
    before = os.environ.get(_CONFIGURATION)
    os.environ[_CONFIGURATION] = str(composed.path)
    try:
        yield
    finally:
        os.environ.pop(_CONFIGURATION)
        if before is not None:
            os.environ[_CONFIGURATION] = before


def run_apart(stage: str, composed: Composed) -> int:
    """Runs a stage in a process of its own; returns its exit code, negative for a signal's number.

    A cluster's signals are passed on, and what that process makes of them is awaited.

    Raises:
        Interrupted: a signal came; submitit's handler, which queues the job again, was called before.
    """
    received: list[int] = []
    with inherited(composed):
        process = subprocess.Popen([sys.executable, "-m", f"simmim.{stage}"])
        with _passing_on(process, received) as handlers:
            try:
                code = process.wait()
            except BaseException:  # Ctrl-C
                process.terminate()
                try:
                    process.wait(_SECONDS_TO_END)
                finally:
                    process.kill()
                raise
    if received or code == INTERRUPTED:
        for number in received:
            before = handlers.get(number)
            if callable(before):
                before(number, None)
        raise Interrupted(INTERRUPTED)
    return code


@contextmanager
def _passing_on(
    process: "subprocess.Popen[bytes]", received: list[int]
) -> Iterator[dict[int, Any]]:
    """Sends a process the signals that this one gets within the block; gives the handlers before."""
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        process.send_signal(number)

    handlers: dict[int, Any] = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield handlers
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def start_name() -> str:
    """A name for this start of a command, the same in all its processes and when they are restarted.

    It is the time; under torchrun, that of the first process to ask, which its agent keeps; under SLURM
    the number of the job, which stays when it is requeued, with a digest of the command, for a job may
    run several.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        return f"slurm-{job}-{hashlib.sha256(chr(0).join(sys.argv).encode()).hexdigest()[:6]}"
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return now
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    agent = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    return agent.compare_set("simmim/start", "", now).decode()


OmegaConf.register_new_resolver("start", start_name, use_cache=True, replace=True)
