"""Commands in processes of their own that start at once.

On a busy core an interpreter takes ten seconds and more until it has imported torch and Lightning, and
a test of two processes takes four of them. Here that is paid for once: processes are forked from one
that has imported it all (multiprocessing's fork server). What a shell's own `python -m` or torchrun
does is tested with those (`run_python` of conftest.py).
"""

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(
    [
        "simmim.pretrain.stage",
        "simmim.evaluate.stage",
        "simmim.plan.stage",
        "torch._dynamo",
        "torch.optim",
    ]
)
# What torchrun gives those that stay when one of its processes has failed.
_GRACE_SECONDS = 5.0


def run_started(
    program: str,
    *arguments: str,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    processes: int = 1,
    timeout: float = 1200,
) -> "subprocess.CompletedProcess[str]":
    """Runs `python -m program` or, if it ends in `.py`, that script.

    Several processes find each other as torchrun's do: by the environment. If one of them fails, the
    others are stopped.

    Returns:
        The first exit code that is not zero; what all wrote to standard output and error.

    Raises:
        TimeoutError: it takes longer than so many seconds; it is killed.
    """
    with tempfile.TemporaryDirectory() as name:
        out, err = Path(name, "out"), Path(name, "err")
        out.touch()
        err.touch()
        method = multiprocessing.get_start_method()
        started = [
            _FORKING.Process(
                target=_become,
                args=(program, arguments, str(cwd), os.environ | own, str(out), str(err), method),
            )
            for own in _environments(environment or {}, processes)
        ]
        for process in started:
            process.start()
        try:
            code = _join(started, timeout)
        finally:
            for process in started:
                process.kill()
                process.join()
        said = (path.read_text(errors="replace") for path in (out, err))
        return subprocess.CompletedProcess([program, *arguments], code, *said)


def check_started(program: str, *arguments: str, cwd: Path, processes: int = 1) -> None:
    """Runs it; it has to succeed."""
    done = run_started(program, *arguments, cwd=cwd, processes=processes)
    assert done.returncode == 0, done.stderr


def _environments(own: Mapping[str, str], processes: int) -> list[dict[str, str]]:
    if processes == 1:
        return [dict(own)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    return [
        {**own, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)
    ]


def _join(started: Sequence[BaseProcess], timeout: float) -> int:
    running, code, end = list(started), 0, time.monotonic() + timeout
    while running and (left := end - time.monotonic()) > 0:
        wait([process.sentinel for process in running], left)
        gone = [process for process in running if process.exitcode is not None]
        running = [process for process in running if process not in gone]
        failed = [process.exitcode for process in gone if process.exitcode]
        if failed and code == 0:
            code, end = failed[0], time.monotonic() + _GRACE_SECONDS
            for process in running:
                process.terminate()
    if running and code == 0:
        raise TimeoutError(f"not finished after {timeout:g} seconds")
    return code


def _become(
    program: str,
    arguments: Sequence[str],
    cwd: str,
    environment: Mapping[str, str],
    out: str,
    err: str,
    start_method: str,
) -> None:
    """Goes on as a new interpreter with this program would."""
    # Loader workers would be forked from such a server as well.
    multiprocessing.set_start_method(start_method, force=True)
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = [program, *arguments]
    try:
        if program.endswith(".py"):
            sys.path.insert(0, str(Path(program).parent))
            runpy.run_path(program, run_name="__main__")
        else:
            sys.path.insert(0, cwd)
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    finally:
        # multiprocessing leaves these out.
        atexit._run_exitfuncs()
        sys.stdout.flush()
