"""On a stop signal, finishes the step, writes a checkpoint, and exits with a code of its own."""

import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from torch import distributed

from simmim.training.callbacks.checkpoint import Checkpoints
from simmim.utils.console import say
from simmim.utils.signals import INTERRUPTED, KEYBOARD, Interrupted, find_signals

_ONCE_MORE = b"\nthe step is being finished and a checkpoint written; Ctrl-C again stops at once\n"


class Preemption(pl.Callback):
    """Stops all ranks after the same step once any of them has received a signal.

    The state is then in `checkpoints/last.ckpt`; a validation that is due follows when the run is
    resumed. After the last step, the run ends as usual. A second Ctrl-C ends the process at once.

    Args:
        signals: names of the signals that stop a run.
    """

    def __init__(self, checkpoints: Checkpoints, signals: Sequence[str]) -> None:
        self.checkpoints = checkpoints
        self.signals = find_signals(signals)
        self._received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._question: _Question | None = None
        self._seen_step = -1
        self._stops = False
        self._speaks = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Installs its signal handlers in place of Lightning's."""
        if stage != "fit" or threading.current_thread() is not threading.main_thread():
            return
        # Lightning's handlers communicate with other ranks in the middle of a step, requeue SLURM
        # jobs with a checkpoint of their own, and make each step wait for the GPU to check for
        # SIGTERM.
        trainer._signal_connector.register_signal_handlers = _do_nothing  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _do_nothing  # type: ignore[method-assign]
        self._speaks = trainer.is_global_zero
        self._before = {number: signal.signal(number, self._note) for number in self.signals}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ignores the step that a resumed run starts from."""
        self._seen_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Writes a checkpoint if the run has to stop; the step's metrics are logged after this."""
        if trainer.global_step == self._seen_step:  # in the middle of an accumulation
            return
        self._seen_step = trainer.global_step
        if not self._stops and self._agree(trainer):
            self.checkpoints.save(trainer, is_needed=True)
            self._stops = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Ends the process, now that the metrics of the step before are logged."""
        if self._stops:
            self._end(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends the process instead of validating, except after the last step of a run."""
        if self._stops and trainer.global_step < trainer.estimated_stepping_batches:
            self._end(trainer)

    def _end(self, trainer: pl.Trainer) -> None:
        by = f" by {self._received.name}" if self._received else ""
        say(
            f"interrupted{by} after step {trainer.global_step}; its state is in "
            f"{self.checkpoints.last}, and the same command goes on from there"
        )
        raise Interrupted(exit_code(trainer))

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Restores the previous signal handlers, unless the run is interrupted and about to end."""
        if not isinstance(exception, Interrupted):
            self._give_back()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restores the previous signal handlers."""
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        if number == KEYBOARD:
            # This works even while the process waits for a device and runs no Python.
            signal.signal(KEYBOARD, signal.SIG_DFL)
            if self._speaks:  # not print: the signal may have interrupted one
                os.write(2, _ONCE_MORE)

    def _agree(self, trainer: pl.Trainer) -> bool:
        """Whether any rank received a signal before the end of the previous step.

        The ranks' question is sent after each step and its answer read after the next, so that no
        rank waits for it. A single process needs neither.
        """
        if trainer.world_size == 1:
            return self._received is not None
        earlier = self._question
        self._question = _Question(self._received is not None, trainer.strategy.root_device)
        return earlier is not None and earlier.answer()


def exit_code(trainer: pl.Trainer) -> int:
    """The exit code of this process when its run can be resumed.

    Lightning treats any code other than 0 of a process that it started itself as a crash, and kills
    rank 0 while that is still closing its files.
    """
    launcher = trainer.strategy.launcher
    started_here = (
        isinstance(launcher, _SubprocessScriptLauncher)
        and not launcher.cluster_environment.creates_processes_externally
    )
    return 0 if started_here and trainer.local_rank else INTERRUPTED


class _Question:
    """Whether any rank says yes, by an asynchronous all-reduce."""

    def __init__(self, mine: bool, device: torch.device) -> None:
        self._flag = torch.full((), float(mine), device=device)
        self._work = distributed.all_reduce(self._flag, op=distributed.ReduceOp.MAX, async_op=True)
        self._arrived: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._work.wait()  # the CUDA stream waits, this process does not
            self._flag = torch.empty((), pin_memory=True).copy_(self._flag, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def answer(self) -> bool:
        """True if any rank said yes."""
        if self._arrived is None:
            self._work.wait()
        else:
            self._arrived.synchronize()
        return bool(self._flag)


def _do_nothing() -> None:
    pass
