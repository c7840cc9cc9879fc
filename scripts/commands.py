"""Runs the commands of simmim as a user types them."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console


def run(stage: str, folder: Path, *options: str) -> dict[str, Any]:
    """Prints and runs `python -m simmim.<stage>` and returns its summary.

    A command that fails ends the script with its exit code. One that had been stopped goes on where it
    stood, and one that had finished is not run again.
    """
    words = ["python", "-m", f"simmim.{stage}", *options, f"run_dir={folder}"]
    summary = folder / "summary.json"
    Console().rule()
    Console().print(f"$ {shlex.join(words)}", style="bold", highlight=False, soft_wrap=True)
    if summary.exists():
        before = (folder / ".hydra" / "overrides.yaml").read_text()
        if sorted(words[3:]) != sorted(yaml.safe_load(before)):
            sys.exit(f"{folder} holds a run with other options; give another folder, or remove it")
        Console().print(f"finished before: {summary}")
    else:
        done = subprocess.run([sys.executable, *words[1:]], check=False)
        if done.returncode:
            sys.exit(done.returncode)
    figures: dict[str, Any] = json.loads(summary.read_text())
    return figures
