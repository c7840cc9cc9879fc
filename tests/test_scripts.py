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

import gather_sweep  # noqa: E402
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


def leave_job(sweep: Path, name: str, overrides: list[str], loss: float | None) -> None:
    (sweep / name / ".hydra").mkdir(parents=True)
    summary = {"metrics": {"val/loss": loss, "val/other": 1.0}, "steps": 9, "seconds": 1.5}
    (sweep / name / "summary.json").write_text(json.dumps(summary))
    finished = {"overrides": overrides, "config": {"objective": "val/loss"}}
    (sweep / name / ".hydra" / "finished.yaml").write_text(json.dumps(finished))


def gather(sweep: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> list[dict[str, str]]:
    monkeypatch.setattr(sys, "argv", ["gather_sweep.py", str(sweep), *options])
    gather_sweep.main()
    with Image.open(sweep / "sweep.png") as picture:
        assert picture.width > 500
    with (sweep / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_sweeps_table_has_what_differs_and_names_what_is_missing(tmp_path, monkeypatch, capsys):
    for lr, seed, loss in (("1e-2", 0, 0.6), ("1e-2", 1, 0.8), ("1e-3", 0, 0.5), ("1e-3", 1, None)):
        leave_job(tmp_path, f"{lr}-{seed}", [f"optim.lr={lr}", f"seed={seed}", "data=demo"], loss)
    for name in ("stopped", "failed"):
        (tmp_path / name / ".hydra").mkdir(parents=True)
    (tmp_path / "failed" / "failure.txt").write_text("mask ratio 2\n")
    rows = gather(tmp_path, monkeypatch)
    assert list(rows[0]) == [
        *("job", "optim.lr", "seed", "val/loss", "val/other", "steps", "seconds")
    ]
    assert [(row["job"], row["val/loss"]) for row in rows] == [
        *(("1e-3-0", "0.5"), ("1e-3-1", ""), ("1e-2-0", "0.6"), ("1e-2-1", "0.8"))
    ]
    table = (tmp_path / "sweep.md").read_text()
    assert "| 0.001 | 1 | – | 1 | 9 | 1.5 |" in table
    assert "| 0.01 | 0.7 ± 0.14 (2) |" in table
    told = capsys.readouterr().out
    assert "4 of 6 finished" in told
    assert "not finished: stopped" in told
    assert "failed: failed: mask ratio 2" in told
    with pytest.raises(SystemExit, match="no figure val/top1; use val/loss, val/other"):
        gather(tmp_path, monkeypatch, "--figure", "val/top1")


@pytest.mark.parametrize(
    ("options", "panels", "lines"),
    [
        ([["a=1"], ["a=20"], ["a=100"]], ["a"], [1]),
        ([["a=tiny"], ["a=small"]], ["a"], [1]),
        ([["a=1", "b=x"], ["a=2", "b=x"], ["a=3", "b=x"], ["a=1", "b=y"]], ["a"], [2]),
        ([["a=1", "b=2"], ["a=3", "b=4"], ["a=5", "b=6"]], ["a", "b"], [1, 1]),
        ([["a=1", "b=2", "c=3"], ["a=2", "b=3", "c=4"]], ["a", "b", "c"], [1, 1, 1]),
    ],
)
def test_a_sweeps_plot_suits_what_was_varied(tmp_path, monkeypatch, options, panels, lines):
    from matplotlib import pyplot

    for number, overrides in enumerate(options):
        leave_job(tmp_path, str(number), overrides, 0.5 + number)
    gather(tmp_path, monkeypatch)
    frames = pyplot.gcf().axes
    assert [frame.get_xlabel() for frame in frames] == panels
    assert [len(frame.containers) for frame in frames] == lines
    assert frames[0].get_xscale() == ("log" if options[-1] == ["a=100"] else "linear")


def test_a_folder_without_runs_is_told(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="holds no finished run of 0"):
        gather(tmp_path, monkeypatch)
