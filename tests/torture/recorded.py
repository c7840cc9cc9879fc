"""`python -m simmim.pretrain` that notes which samples each step takes."""

import os
from pathlib import Path

from simmim.cli.main import run_command
from simmim.training import run as runs
from torture.jobs import recorder

if __name__ == "__main__":
    runs.LearningRate = recorder(Path(os.environ["SIMMIM_SAMPLES"]), None)
    run_command("pretrain")
