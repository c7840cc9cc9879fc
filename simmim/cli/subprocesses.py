"""The processes of a run: a stage in a subprocess, and a start name that all processes agree on.

Each process that torchrun or srun starts composes its own configuration; the start's name, which is
part of the run directory's, has to be the same in all of them.
"""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from omegaconf import OmegaConf

from simmim.training.run_dir.config_record import Composed, config_env
from simmim.utils.signals import INTERRUPTED, Interrupted, clusters_signals

# Time for a last checkpoint, before the scheduler kills the job.
_SECONDS_TO_END = 60.0


def run_apart(stage: str, composed: Composed) -> int:
    """Runs a stage in a subprocess; returns its exit code, or minus the signal that ended it.

    A cluster's signals are passed on to the subprocess, which is then waited for.

    Raises:
        Interrupted: a signal came; submitit's handler, which requeues the job, has been called.
    """
    received: list[int] = []
    signals = clusters_signals(composed.config.get("stop_signals") or [])
    with config_env(composed):
        process = subprocess.Popen([sys.executable, "-m", f"simmim.{stage}"])
        with _passing_on(process, signals, received) as handlers:
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
    process: subprocess.Popen[bytes], signals: Iterable[int], received: list[int]
) -> Iterator[dict[int, Any]]:
    """Forwards these signals to a process, if this one gets them; yields the previous handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        process.send_signal(number)

    handlers: dict[int, Any] = {number: signal.signal(number, pass_on) for number in signals}
    try:
        yield handlers
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def start_name() -> str:
    """A name for this start of a command, the same in all its processes and when they are restarted.

    It is the current time; under torchrun, the time of the first process to ask, stored by
    torchrun's agent; under SLURM, the job's number, which a requeue keeps, and a digest of the
    command, as a job may run several commands.
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
