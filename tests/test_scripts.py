"""The scripts beside the package: what they run, and the tables that they write."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY
from PIL import Image

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from commands import run  # noqa: E402
from quickstart import Story, as_markdown, table_rows  # noqa: E402
from window_transfer import Cell  # noqa: E402
from window_transfer import as_markdown as as_paper  # noqa: E402


def story(top1: float) -> Story:
    def summary(**metrics: float) -> dict:
        return {"metrics": metrics, "seconds": 1.0}

    return Story(
        pretrained=summary(),
        finetuned=summary(**{"val/top1": top1}),
        scratch=summary(**{"val/top1": top1 / 2}),
        transferred=summary(**{"direct/top1": top1 / 4, "val/top1": top1 + 0.1}),
    )


def test_the_quickstarts_table_has_a_column_a_seed_and_their_mean():
    lines = as_markdown(table_rows([story(0.4), story(0.6)]), [0, 1]).splitlines()
    assert lines[0] == "|  | mean top-1 | seed 0 | seed 1 |"
    assert lines[2] == "| from scratch, 64 px | 25.0% | 20.0% | 30.0% |"
    assert lines[-1] == "| → carried to 96 px, fine-tuned | 60.0% | 50.0% | 70.0% |"
    alone = as_markdown(table_rows([story(0.4)]), [0]).splitlines()
    assert alone[2] == "| from scratch, 64 px | 20.0% |"


def test_the_papers_table_has_direct_and_finetuned_in_each_cell():
    cells = [
        Cell("table", 8, 64, 0.8, 0.8),
        Cell("table", 24, 192, 0.1, 0.7),
        Cell("log_cpb", 8, 64, 0.81, 0.81),
        Cell("log_cpb", 24, 192, 0.5, 0.75),
    ]
    assert as_paper(cells).splitlines() == [
        "| position bias | W8 I64 | W24 I192 |",
        "| --- | --- | --- |",
        "| table, bicubic | 80.0 | 10.0 / 70.0 |",
        "| log CPB | 81.0 | 50.0 / 75.0 |",
    ]


def test_a_command_that_fails_ends_the_script_and_one_that_finished_is_not_repeated(
    tmp_path, capsys
):
    with pytest.raises(SystemExit) as stopped:
        run("pretrain", tmp_path / "run", "mask.ratio=2")
    assert stopped.value.code == 2
    (tmp_path / "run" / ".hydra").mkdir(parents=True, exist_ok=True)
    options = f'["mask.ratio=2", "run_dir={tmp_path / "run"}"]'
    (tmp_path / "run" / ".hydra" / "overrides.yaml").write_text(options)
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"stage": "pretrain"}))
    assert run("pretrain", tmp_path / "run", "mask.ratio=2") == {"stage": "pretrain"}
    with pytest.raises(SystemExit, match="holds a run with other options"):
        run("pretrain", tmp_path / "run", "mask.ratio=0.5")
    assert "finished before" in capsys.readouterr().out


def test_the_window_transfer_ablation_writes_its_table_and_plot(tmp_path):
    tiny = [option for option in TINY if option.startswith(("model.", "data.", "trainer"))]
    own = [option for option in tiny if not option.startswith("model.")]
    architecture = [option for option in tiny if "_size" not in option and "model." in option]
    shared = [*own, "data.train_size=16", "data.val_size=8", "trainer.max_steps=1"]
    done = subprocess.run(
        [
            sys.executable,
            str(SCRIPTS / "window_transfer.py"),
            "position_biases=[log_cpb]",
            "scales=[1.5]",
            "image_size=32",
            "window_size=4",
            f"pretrain=[{','.join(repr(option) for option in [*architecture, *shared])}]",
            f"finetune=[{','.join(map(repr, shared))}]",
            f"transfer=[{','.join(map(repr, shared))}]",
            "out=out",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["position_bias"], row["image_size"], row["window_size"]) for row in rows] == [
        ("log_cpb", "32", "4"),
        ("log_cpb", "48", "6"),
    ]
    assert "| log CPB |" in (out / "table.md").read_text()
    with Image.open(out / "table.png") as picture:
        assert picture.width > 500
