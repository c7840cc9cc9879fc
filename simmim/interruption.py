"""How a run is asked to stop, and how it says that it did: signals in, an exit code out."""

import signal

# What clusters send before they end or requeue a job. SLURM: SIGTERM with `scontrol requeue` and
# preemption, SIGUSR1 with `#SBATCH --signal=USR1@300`; submitit: SIGUSR2.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

# Neither success nor failure: started again with the same command, the run goes on (EX_TEMPFAIL).
INTERRUPTED = 75


class Interrupted(SystemExit):
    """Ends a process whose run can be resumed."""


def ignore_signals() -> None:
    """For a process that serves the run's own: it gets a cluster's signals too, and is still needed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
