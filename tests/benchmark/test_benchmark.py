"""The benchmark runs in small, and compares like with like."""

import json

import pytest
import rich
import torch
from rich.console import Console

from simmim.benchmark import tables
from simmim.benchmark.implementations import Implementations
from simmim.benchmark.scaling import fit_exponent
from simmim.benchmark.timing import interleave, ratio
from simmim.benchmark.workloads import draw_inputs, parse_row
from simmim.utils.errors import UserError


def test_a_small_benchmark_writes_its_figures_and_a_picture(run, tmp_path):
    figures = run(
        "benchmark",
        "parts=[steps,loading]",
        "rows=[simmim-64-4,classification-64-4]",
        "compiled_rows=[]",
        "memory_rows=[]",
        "batch_size=1",
        "rounds=1",
        "images=2",
        "precisions=[float32]",
    )
    written = json.loads((tmp_path / "run" / "benchmark.json").read_text())
    assert written == json.loads(json.dumps(figures))
    simmim, classification = written["steps"]
    assert set(simmim["ratios"]) == {"timm", "hugging_face"}
    assert set(classification["ratios"]) == {"timm", "hugging_face", "torchvision"}
    assert [row["size"] for row in written["loading"]] == ["500×375", "3000×2000"]
    assert (tmp_path / "run" / "benchmark.png").stat().st_size > 1000


def test_who_takes_part_does_the_same_work():
    """As many parameters but for what V2's implementations differ by, and a loss of the same size."""
    work = parse_row("simmim-64-4", "swinv2_t", 2)
    inputs = draw_inputs(work, torch.device("cpu"))
    losses, sizes = [], []
    for name in ("ours", "timm", "hugging_face"):
        implementation = Implementations((), None).create(name, work)
        losses.append(float(implementation.step(inputs)))
        sizes.append(sum(parameter.numel() for parameter in implementation.model.parameters()))
    assert max(losses) < 1.3 * min(losses)
    assert max(sizes) < 1.01 * min(sizes)


def test_the_tables_fit_a_console_of_80_characters(capsys, monkeypatch):
    monkeypatch.setattr(rich, "_console", Console(width=80))
    of_all = {"row": "classification-256-16", "model": "swinv2_t", "compiled": True}
    ratio = {"median": 0.91, "lowest": 0.84, "highest": 10.25}
    peers = ["timm", "hugging_face", "torchvision", "official"]
    step = {"seconds": {"ours": 123.4}, "ratios": {}, "precision": "float32", **of_all}
    size = {"bytes": {"ours": 9.1e10}, "precision": "float32", **of_all}
    for peer in peers:
        step["seconds"][peer], step["ratios"][peer] = 135.6, ratio
        size["bytes"][peer] = 1e11
    tables.show_steps([step, step])
    tables.show_memory([size])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for peer in peers:
        of_step, _, of_size = [line for line in lines if f" {peer} " in line]
        for figure in ("136", "123", "0.91", "0.84 – 10.25"):
            assert f" {figure} " in of_step
        for figure in ("100000", "0.91"):
            assert f" {figure} " in of_size
    for told in ("classification-256-16", "swinv2_t", "float32, compiled"):
        assert sum(f" {told} " in line for line in lines) == 3


def test_times_are_taken_in_turns():
    order = []
    timers = {name: lambda name=name: order.append(name) or 1.0 for name in "ab"}
    seconds = interleave(timers, 3)
    assert order[-6:] == ["a", "b"] * 3
    assert seconds == {"a": [1.0] * 3, "b": [1.0] * 3}
    assert ratio([1.0, 2.0, 9.0], [1.0, 4.0, 3.0]) == (1.0, 0.5, 3.0)


def test_the_exponent_of_a_power_is_found():
    assert fit_exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


@pytest.mark.parametrize("row", ["simmim-192", "training-192-12", "simmim-192-x"])
def test_a_row_of_another_form_is_refused(row):
    with pytest.raises(UserError, match="use simmim-192-12"):
        parse_row(row, "swinv2_t", 1)
