"""Re-runs what the papers claim at a size that a laptop holds, and writes each one's page.

    python scripts/claims.py loss_region                 runs, then table.md, runs.csv and plot.png
    python scripts/claims.py loss_region --seeds 0       one seed
    python scripts/claims.py loss_region --docs docs     also the page and the plot of the documentation

Each claim is a recipe in scripts/claims/: what the paper says, and what is varied; what all have in
common stands in shared.yaml there. Every run has a directory that follows from its options: a study
that is started again goes on where it stood, and claims that have a run in common share it.
"""

import argparse
import itertools
import json
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from claims_page import Outcome, write, write_page
from commands import run
from rich.console import Console

from simmim.cli.sweeps import job_name

RECIPES = Path(__file__).parent / "claims"
CLAIMS = sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem != "shared")
METER = "cpu_seconds"

Options = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One setting of a claim, for any seed: its place on the axes, and options beside the shared ones.

    Without `pretrain` it is fine-tuned from scratch; without `finetune` it ends with pretraining.
    """

    place: dict[str, str]
    pretrain: Options | None
    finetune: Options | None


def main() -> None:
    """Runs the claim's commands and writes what they came to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("claim", choices=CLAIMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("outputs", "claims"))
    parser.add_argument("--docs", type=Path, help="folder of experiments/ and images/ to write to")
    parser.add_argument("--gather", action="store_true", help="run nothing; write of what is done")
    arguments = parser.parse_args()
    recipe, shared = read(arguments.claim), read("shared")
    cells, out = create_cells(recipe), arguments.out
    if not arguments.gather:
        if recipe.get("multirun"):
            meter = out / arguments.claim / METER
            sweep(cells, arguments.seeds, out / "pretrain", shared["pretrain"], meter)
        # Seeds last: what is there of the first ones is a whole table.
        for seed, cell in itertools.product(arguments.seeds, cells):
            follow(cell, seed, out, shared, swept=recipe.get("multirun", False))
    runs = list(itertools.product(cells, arguments.seeds))
    outcomes = [read_outcome(cell, seed, out) for cell, seed in runs]
    finished = [outcome for outcome in outcomes if outcome is not None]
    if missing := len(runs) - len(finished):
        Console().print(f"{missing} of {len(runs)} runs are missing")
    if not finished or (missing and arguments.docs):
        sys.exit(f"error: {out} does not hold all runs of {arguments.claim}; leave out --gather")
    # Cells share runs.
    all_folders = {folder for cell, seed in runs for folder in folders(cell, seed, out).values()}
    seconds = sum(read_meter(folder / METER) for folder in {*all_folders, out / arguments.claim})
    write(recipe, finished, out / arguments.claim)
    if arguments.docs:
        write_page(arguments.claim, recipe, finished, seconds, arguments.docs)


def read(name: str) -> dict[str, Any]:
    """A recipe, or the shared options."""
    content: dict[str, Any] = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    return content


def create_cells(recipe: Mapping[str, Any]) -> list[Cell]:
    """All combinations of the axes' values.

    An axis's value has options for `pretrain` and `finetune`; `pretrain: null` is from scratch. The
    recipe's own are of all of its cells.
    """
    cells = []
    axes: dict[str, dict[str, Any]] = recipe["axes"]
    for values in itertools.product(*axes.values()):
        parts = [axis[value] or {} for axis, value in zip(axes.values(), values, strict=True)]
        place = dict(zip(axes, map(str, values), strict=True))
        cells.append(
            Cell(place, merge([recipe, *parts], "pretrain"), merge([recipe, *parts], "finetune"))
        )
    return cells


def merge(parts: Sequence[Mapping[str, Any]], stage: str) -> Options | None:
    """The options that the parts have for a stage; None where one of them leaves the stage out."""
    merged: Options = {}
    for part in parts:
        options = part.get(stage, {})
        if options is None:
            return None
        merged |= options
    return merged


def as_typed(options: Mapping[str, Any]) -> list[str]:
    """`name=value` of each."""
    return [f"{name}={value}" for name, value in options.items()]


def named(options: Mapping[str, Any]) -> str:
    """A directory's name for these options, as a sweep (-m) over them names it."""
    return job_name("__".join(sorted(as_typed(options))))


def folders(cell: Cell, seed: int, out: Path) -> dict[str, Path]:
    """The run directory of each stage that the cell has."""
    found = {}
    if cell.pretrain is not None:
        found["pretrain"] = out / "pretrain" / named(cell.pretrain | {"seed": seed})
    if cell.finetune is not None:
        start = "scratch"
        if cell.pretrain is not None:
            start = named(cell.pretrain) if cell.pretrain else "baseline"
        found["finetune"] = out / "finetune" / start / named(cell.finetune | {"seed": seed})
    return found


def sweep(
    cells: Sequence[Cell], seeds: Sequence[int], out: Path, shared: Options, meter: Path
) -> None:
    """All pretraining as one multirun, which skips what is finished."""
    swept: dict[str, list[str]] = {"seed": [str(seed) for seed in seeds]}
    for cell in cells:
        for name, value in (cell.pretrain or {}).items():
            if str(value) not in swept.setdefault(name, []):
                swept[name].append(str(value))
    # A choice of one is still a part of its directory's name.
    varied = [f"{name}=choice({','.join(values)})" for name, values in swept.items()]
    words = ["python", "-m", "simmim.pretrain", "-m", *as_typed(shared), *varied]
    words.append(f"run_dir={out}")
    Console().rule()
    Console().print(f"$ {shlex.join(words)}", style="bold", highlight=False, soft_wrap=True)
    with metered(meter):
        done = subprocess.run([sys.executable, *words[1:]], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def follow(cell: Cell, seed: int, out: Path, shared: Mapping[str, Options], *, swept: bool) -> None:
    """The cell's commands for one seed, but for those that have been run."""
    where = folders(cell, seed, out)
    for stage, folder in where.items():
        if stage == "pretrain" and swept:
            continue
        own = {"pretrain": cell.pretrain, "finetune": cell.finetune}[stage]
        options = shared[stage] | (own or {}) | {"seed": seed}
        if stage == "finetune" and "pretrain" in where:
            options |= {"init.checkpoint": where["pretrain"]}
        with metered(folder / METER):
            run(stage, folder, *as_typed(options))


@contextmanager
def metered(path: Path) -> Iterator[None]:
    """Adds the seconds of CPU that commands take to those in a file: a run may have been stopped."""

    def of_children() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = of_children()
    try:
        yield
    finally:
        taken = of_children() - before
        if taken > 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{read_meter(path) + taken:.6f}\n")


def read_meter(path: Path) -> float:
    """Seconds of CPU so far."""
    return float(path.read_text()) if path.is_file() else 0.0


def read_outcome(cell: Cell, seed: int, out: Path) -> Outcome | None:
    """What the cell came to with this seed; None while a run is missing."""
    figures: dict[str, float | None] = {}
    seconds: dict[str, float | None] = {}
    for stage, folder in folders(cell, seed, out).items():
        summary = folder / "summary.json"
        if not summary.is_file():
            return None
        content = json.loads(summary.read_text())
        figures |= {f"{stage}/{name}": value for name, value in content["metrics"].items()}
        figures[f"{stage}/parameters"] = content["parameters"]
        seconds[f"{stage}/cpu_seconds"] = read_meter(folder / METER) or None
    return Outcome(cell.place, seed, figures | seconds)


if __name__ == "__main__":
    main()
