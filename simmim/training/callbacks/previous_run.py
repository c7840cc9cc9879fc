"""What an earlier run in the same directory came to, while another begins anew there."""

import os
from pathlib import Path

import pytorch_lightning as pl

from simmim.checkpoints.read import EARLIER, FINAL_WEIGHTS
from simmim.utils.console import say, warn
from simmim.utils.files import remove

# The summary, and what says of which configuration it is: a sweep skips a job that has both.
_RESULTS = (".hydra/finished.yaml", "summary.json", *FINAL_WEIGHTS)


class PreviousRunBackup(pl.Callback):
    """Sets aside what a finished run left in the directory, where another one begins anew.

    Left in its place it would be taken for the new run's, which may have other options: by the
    report, by `init.checkpoint=RUN` and by a sweep that skips what is finished. Removed, it would be
    lost where the new run fails in its first step, or begins anew only because its checkpoints were
    cleared away. So final weights, summary and its configuration move to `earlier` in the run
    directory, once the first step is about to be taken, and go when the new run has written its own.
    Until then `init.checkpoint=RUN/earlier` takes them. A run that goes on from a checkpoint, to be
    made longer or after a kill, moves nothing. Rank 0 moves and removes.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        self.folder = self.run_dir / EARLIER

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing is left that could refuse the run."""
        if not trainer.is_global_zero or trainer.global_step > 0:
            return
        left = [path for name in _RESULTS if (path := self.run_dir / name).is_file()]
        if not left:
            return
        try:
            self.folder.mkdir(exist_ok=True)
            for path in left:
                os.replace(path, self.folder / path.name)
        except OSError as error:
            warn(
                f"{self.folder} cannot be written to ({error.strerror}); until this run has ended, "
                f"{left[-1].name} in {self.run_dir} is that of the run before it"
            )
            return
        say(f"what the run before it came to is in {self.folder} until this one has ended")

    def forget(self) -> None:
        """The new run has ended, and its own results stand."""
        remove(self.folder)
