"""How near a plan's memory comes to what a run takes: process memory on the CPU, a table as it goes.

    python scripts/plan_accuracy.py OUTPUT

Trains SwinV2-T and B for a few steps in each setting; about ten minutes on two cores.
"""

import json
import subprocess
import sys
from pathlib import Path

SETTINGS = {
    "T, batch 8": ["model=swinv2_t", "data.batch_size=8"],
    "T, batch 8, recomputed": [
        "model=swinv2_t",
        "data.batch_size=8",
        "model.checkpoint_blocks=all",
    ],
    "T, batch 8 × 2": ["model=swinv2_t", "data.batch_size=8", "trainer.accumulate_grad_batches=2"],
    "B, batch 2": ["model=swinv2_b", "data.batch_size=2"],
    "B, batch 8": ["model=swinv2_b", "data.batch_size=8"],
    "B, batch 8, recomputed": [
        "model=swinv2_b",
        "data.batch_size=8",
        "model.checkpoint_blocks=all",
    ],
}
SHORT = ["data.train_size=64", "data.val_size=8", "data.num_workers=1", "trainer=cpu", "logger=csv"]


def main(output: Path) -> None:
    """Plans and measures every setting."""
    print(f"{'':<24}{'planned':>10}{'measured':>10}{'ratio':>8}   GB")
    for number, (name, overrides) in enumerate(SETTINGS.items()):
        planned_in, ran_in = output / f"plan{number}", output / f"run{number}"
        call("plan", planned_in, *SHORT, *overrides)
        call("pretrain", ran_in, *SHORT, *overrides, "trainer.max_steps=3")
        planned = json.loads((planned_in / "plan.json").read_text())["needed_bytes"] / 1e9
        measured = json.loads((ran_in / "summary.json").read_text())["peak_memory_bytes"] / 1e9
        print(f"{name:<24}{planned:>10.2f}{measured:>10.2f}{planned / measured:>8.2f}", flush=True)


def call(stage: str, folder: Path, *overrides: str) -> None:
    """Runs a stage by its command."""
    command = [sys.executable, "-m", f"simmim.{stage}", *overrides, f"run_dir={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
