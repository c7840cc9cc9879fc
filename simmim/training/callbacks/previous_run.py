"""Keeps the results of an earlier run while a new run starts over in the same directory."""

import os
from pathlib import Path

import pytorch_lightning as pl

from simmim.checkpoints.read import EARLIER, FINAL_WEIGHTS
from simmim.utils.console import say, warn
from simmim.utils.files import remove

# The summary, and the configuration it belongs to: a sweep skips a job that has both.
_RESULTS = (".hydra/finished.yaml", "summary.json", *FINAL_WEIGHTS)


class PreviousRunBackup(pl.Callback):
    """Moves aside the results of a finished run when a new run starts over in its directory.

    If they stayed, the report, `init.checkpoint=RUN`, and a sweep that skips finished jobs would
    mistake them for those of the new run, which may have other options. If they were removed, they
    would be lost when the new run fails in its first step, or starts over only because its
    checkpoints were deleted. So final weights, summary and its configuration move to `earlier` in
    the run directory just before the first step, and are removed when the new run has written its
    own. Until then, `init.checkpoint=RUN/earlier` loads them. A run that resumes from a checkpoint,
    to be made longer or after it was killed, moves nothing. Only rank 0 moves and removes files.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        self.folder = self.run_dir / EARLIER

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Moves the results, now that the new run has passed all checks."""
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
        """Removes the earlier results, now that the new run has written its own."""
        remove(self.folder)
