"""`python -m simmim.pretrain` that notes which samples each step takes."""

import os
from pathlib import Path

from simmim import runs
from simmim.command_line import run_command
from torture.jobs import recorder

if __name__ == "__main__":
    runs.LearningRate = recorder(Path(os.environ["SIMMIM_SAMPLES"]), None)
    run_command("pretrain")
