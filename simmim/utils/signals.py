"""The signals that ask a run to stop, and the exit codes that say that it did."""

import signal
import sys
from collections.abc import Sequence

from simmim.utils.errors import UserError

# What clusters send before they end or requeue a job. SLURM: SIGTERM with `scontrol requeue` and
# preemption, SIGUSR1 with `#SBATCH --signal=USR1@300`; submitit: SIGUSR2.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# Ctrl-C, which a terminal sends to all processes of a run at once. A second one ends them.
KEYBOARD = signal.SIGINT

# Neither success nor failure: the same command resumes the run (EX_TEMPFAIL).
INTERRUPTED = 75
_UNHEARD = {signal.SIGKILL, signal.SIGSTOP}
# Stopped by Ctrl-C, with nothing written.
STOPPED_AT_ONCE = 130


class Interrupted(SystemExit):
    """Ends a process whose run can be resumed."""


def is_interrupting() -> bool:
    """Whether the exception being handled is a run's interruption, which is not a failure."""
    return isinstance(sys.exc_info()[1], (Interrupted, KeyboardInterrupt))


def ignore_signals(names: Sequence[str] = ()) -> None:
    """Ignores stop signals in a helper process, which gets them too and is still needed.

    `names` are the signals that ask the run itself to stop.
    """
    for number in (*clusters_signals(names), KEYBOARD):
        signal.signal(number, signal.SIG_IGN)


def clusters_signals(names: Sequence[str]) -> set[signal.Signals]:
    """Signals that a cluster may send: its usual ones and those of `names`, but not Ctrl-C."""
    asked = {number for number in signal.Signals if number.name in names}
    return {*SIGNALS, *asked} - {*_UNHEARD, KEYBOARD}


def find_signals(names: Sequence[str]) -> tuple[signal.Signals, ...]:
    """The signals with these names; UserError for one that no process can handle."""
    known = {number.name: number for number in signal.Signals if number not in _UNHEARD}
    for name in names:
        if name not in known:
            raise UserError(
                f"stop_signals: {name} is no signal that a run can listen to; use SIGINT, SIGTERM, "
                "SIGUSR1, SIGUSR2 or another of this system's"
            )
    return tuple(known[name] for name in names)
