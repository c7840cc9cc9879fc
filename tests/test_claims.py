"""Claims: recipes that compose, runs that are shared and not repeated, tables of what they came to."""

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import compose

from simmim.cli import schema
from simmim.cli.main import find_stage
from simmim.cli.sweeps import job_name

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import claims
from claims_page import Column, Outcome, as_differences, as_tables

pytestmark = pytest.mark.unchecked

TOP1 = Column("top-1, %", "finetune/val/top1", scale=100)


def outcome(seed: int, top1: float | None, **place: str) -> Outcome:
    return Outcome(place, seed, {"finetune/val/top1": top1})


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a claim whose runs only leave a summary; returns the directories of new ones."""

    def leave(folder: Path, number: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        metrics = {"val/top1": 0.1 * number, "val/loss_over_baseline": 0.9}
        (folder / "summary.json").write_text(json.dumps({"metrics": metrics, "parameters": 1000}))

    def start_claim(claim: str, *options: str) -> list[str]:
        ran: list[str] = []

        def run(stage: str, folder: Path, *_: str) -> None:
            if not (folder / "summary.json").exists():
                ran.append(folder.relative_to(tmp_path).as_posix())
                leave(folder, len(ran))

        def multirun(words: list[str], check: bool) -> Any:
            ran.append(" ".join(words))
            for cell in claims.create_cells(claims.read(claim)):
                leave(claims.folders(cell, 0, tmp_path)["pretrain"], 0)
            return type("Done", (), {"returncode": 0})

        monkeypatch.setattr(claims, "run", run)
        monkeypatch.setattr(claims.subprocess, "run", multirun)
        monkeypatch.setattr(sys, "argv", ["claims.py", claim, "--out", str(tmp_path), *options])
        claims.main()
        return ran

    return start_claim


@pytest.mark.parametrize("claim", claims.CLAIMS)
def test_a_recipe_tells_its_source_and_every_command_composes(claim, tmp_path):
    header = (claims.RECIPES / f"{claim}.yaml").read_text().split("title:")[0]
    assert "arXiv" in header
    assert f"python scripts/claims.py {claim}" in header
    assert "expected" in header
    shared = claims.read("shared")
    commands = {}
    for cell in claims.create_cells(claims.read(claim)):
        for stage in claims.folders(cell, 0, tmp_path):
            own = {"pretrain": cell.pretrain, "finetune": cell.finetune}[stage] or {}
            # Of those that differ in their values alone, one.
            commands[(stage, *own)] = shared[stage] | own | {"seed": 0}
    for (stage, *_), options in commands.items():
        config = compose(stage, claims.as_typed(options))
        schema.check(config, find_stage(stage))


@pytest.mark.parametrize("claim", claims.CLAIMS)
def test_every_cell_has_a_directory_of_its_own(claim, tmp_path):
    cells = claims.create_cells(claims.read(claim))
    last = {
        list(claims.folders(cell, seed, tmp_path).values())[-1] for cell in cells for seed in (0, 1)
    }
    assert len(last) == 2 * len(cells)


def test_claims_share_the_runs_that_they_have_in_common(start, tmp_path):
    ran = start("loss_region", "--seeds", "0", "1")
    assert ran[:2] == ["pretrain/seed-0", "finetune/baseline/seed-0"]
    assert "pretrain/loss_region-image__seed-1" in ran
    assert len(ran) == 8
    assert start("loss_region", "--seeds", "0", "1") == []
    again = start("few_labels", "--seeds", "0")
    longer = "trainer.check_val_every_n_epoch-80__trainer.max_epochs-80"
    assert f"finetune/scratch/data.train_size-150__seed-0__{longer}" in again
    assert len(again) == 4 + 3
    with (tmp_path / "few_labels" / "runs.csv").open() as file:
        rows = {(row["start"], row["labels"]): row for row in csv.DictReader(file)}
    assert rows["pretrained", "600"]["finetune/val/top1"] == "0.2"


def test_the_grid_is_one_multirun_whose_jobs_are_found(start, tmp_path):
    multirun, *ran = start("mask_grid", "--seeds", "0")
    choices = "seed=choice(0) mask.patch_size=choice(8,16,32) mask.ratio=choice(0.25,0.5,0.75)"
    assert f" {choices} run_dir={tmp_path / 'pretrain'}" in multirun
    assert len(ran) == 9
    cell = claims.create_cells(claims.read("mask_grid"))[1]
    # Hydra sorts the options of a job.
    name = job_name("mask.patch_size=8__mask.ratio=0.5__seed=0")
    assert claims.folders(cell, 0, tmp_path)["pretrain"].name == name


def test_a_page_tells_command_figures_and_time(start, tmp_path):
    for folder in ("experiments", "images"):
        (tmp_path / "docs" / folder).mkdir(parents=True)
    start("head_depth", "--docs", str(tmp_path / "docs"))
    page = (tmp_path / "docs" / "experiments" / "head_depth.md").read_text()
    assert "    python scripts/claims.py head_depth\n" in page
    assert "| linear | " in page
    assert "minutes of one core" in " ".join(page.split())
    assert "](../images/head_depth.png)" in page
    assert (tmp_path / "docs" / "images" / "head_depth.png").stat().st_size > 1000


def test_without_all_runs_there_is_no_page(start, tmp_path, capsys):
    with pytest.raises(SystemExit, match="does not hold all runs of stability"):
        start("stability", "--gather")
    start("loss_region", "--seeds", "0")
    start("loss_region", "--seeds", "0", "1", "--gather")
    assert "2 of 4 runs are missing" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="does not hold all runs of loss_region"):
        start("loss_region", "--seeds", "0", "1", "--gather", "--docs", str(tmp_path))


def test_seconds_of_all_parts_of_a_run_add_up(tmp_path, monkeypatch):
    """Those that a system counts, however short a part is."""
    used = SimpleNamespace(ru_utime=100.0, ru_stime=10.0)
    monkeypatch.setattr(claims.resource, "getrusage", lambda who: used)
    for total in (0.03, 0.06, 0.09):
        with claims.metered(tmp_path / "cpu_seconds"):
            used.ru_utime += 0.02
            used.ru_stime += 0.01
        assert claims.read_meter(tmp_path / "cpu_seconds") == pytest.approx(total)
    with claims.metered(tmp_path / "cpu_seconds"):
        pass
    assert claims.read_meter(tmp_path / "cpu_seconds") == pytest.approx(0.09)


def test_one_axis_makes_rows_with_mean_and_deviation():
    outcomes = [outcome(seed, 0.5 + 0.1 * seed, head="linear") for seed in range(3)]
    [table] = as_tables(outcomes, [TOP1])
    assert table.splitlines()[2] == "| linear | 60.0 ± 10.0 | 3 |"


def test_two_axes_make_a_grid_and_what_is_missing_is_a_dash():
    outcomes = [outcome(0, 0.5, patch="8", ratio="0.5"), outcome(0, 0.25, patch="16", ratio="0.75")]
    [table] = as_tables(outcomes, [TOP1])
    assert table.splitlines()[2:] == ["| 8 | 50.0 | – |", "| 16 | – | 25.0 |"]


def test_differences_are_between_runs_of_the_same_seed():
    outcomes = [outcome(seed, 0.1 * seed, head="linear") for seed in range(3)]
    outcomes += [outcome(seed, 0.1 * seed + 0.02, head="mlp") for seed in (1, 2)]
    lines = as_differences(outcomes, TOP1, "head").splitlines()
    assert lines[0].startswith("| top-1, %, less that of linear |")
    assert lines[2:] == ["| mlp | +2.0 | 0.0 | 2 |"]


def test_runs_that_failed_are_counted_and_have_no_part_in_the_mean():
    column = Column("loss", "finetune/val/top1", digits=2, failed_above=1.0)
    outcomes = [outcome(seed, value, block="pre") for seed, value in enumerate([0.5, None, 1.2])]
    assert column.show(outcomes) == "0.50 (2 of 3 failed)"
    assert column.show(outcomes[1:]) == "– (2 of 2 failed)"
    assert column.show(outcomes[:1]) == "0.50"
