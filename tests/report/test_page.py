"""What the page shows of a run directory, and that it needs nothing from elsewhere."""

import base64
import io
import json
import re
from dataclasses import replace

import pytest
from PIL import Image

from report.conftest import IMAGES, STEPS, write_metrics
from simmim.data.loader import MUCH
from simmim.report import __main__ as report
from simmim.report.html import write_report
from simmim.report.run_record import read_run, write_facts
from simmim.report.sweep import write_sweep_report
from simmim.utils.errors import UserError


def embedded(page: str, name: str):
    """The data that the page's script draws from."""
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page)
    assert found
    return json.loads(found[1])


def test_every_part_is_there(run_dir):
    page = write_report(run_dir).read_text()
    titles = [chart["title"] for chart in embedded(page, "charts")]
    assert titles == [
        *("Masked loss", "Learning rate", "Gradient norm", "Throughput", "Waiting for data"),
        *("Peak memory", "Activation amplitude by block"),
    ]
    for part in ("Learning well", "Reconstructions", "Attention by block", "Stage 2, block 1"):
        assert part in page
    assert "0123abc" in page
    assert "seed: 7" in page
    assert "2.11.0" in page
    assert "Not logged in this run" not in page
    assert f"Above {MUCH:.0%}, more loader processes" in page


def test_the_loss_stands_beside_both_baselines(run_dir):
    chart = embedded(write_report(run_dir).read_text(), "charts")[0]
    names = [series["name"] for series in chart["series"]]
    assert names == ["training", "held out", "visible mean", "nearest visible pixel"]
    steps, training, held_out, mean, _ = chart["data"]
    assert held_out[steps.index(300)] == pytest.approx(0.7 - 299 / 900, abs=1e-4)
    assert training[steps.index(10)] == pytest.approx(0.691)
    assert {value for value in mean if value is not None} == {0.8}


def test_the_page_asks_no_network_and_runs_no_text_of_the_run(run_dir):
    page = write_report(run_dir).read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", page)
    assert not re.findall(r"@import|url\(|fetch\(|XMLHttpRequest|<link (?!rel=.icon)", page)
    assert "default-src 'none'" in page
    assert "</script><b>" not in page
    assert "my &lt;run&gt;" in page


def test_reconstructions_are_cut_out_of_their_sheets(run_dir):
    page = write_report(run_dir).read_text()
    gallery = embedded(page, "gallery")
    assert gallery["steps"] == list(STEPS)
    assert [len(images) for images in gallery["images"]] == [len(STEPS)] * IMAGES
    colours = [picture(uri).getpixel((40, 40))[0] for uri in gallery["images"][0]]
    assert colours == pytest.approx([step % 256 for step in STEPS], abs=3)


def picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_so_many_steps_are_shown_as_wanted(run_dir):
    gallery = embedded(write_report(run_dir, pictures=2).read_text(), "gallery")
    assert gallery["steps"] == [STEPS[0], STEPS[-1]]


def test_sheets_that_do_not_say_where_their_pictures_are_stand_whole(run_dir):
    for path in run_dir.glob("reconstructions/*.png"):
        with Image.open(path) as sheet:
            sheet.load()
        sheet.save(path)
    gallery = embedded(write_report(run_dir).read_text(), "gallery")
    assert [len(sheets) for sheets in gallery["images"]] == [len(STEPS)]


def test_a_run_that_has_logged_little_says_what_is_missing(run_dir):
    (run_dir / "metrics.csv").write_text("step,train/loss\n9,0.7\n")
    (run_dir / "encoder.safetensors").unlink()
    page = write_report(run_dir).read_text()
    assert "Too early to tell" in page
    assert "Not logged in this run: gradient norm, share of time waiting for data" in page
    assert 'id="attention"' not in page


def test_an_empty_directory_has_a_page(tmp_path):
    assert "Too early to tell" in write_report(tmp_path).read_text()


def test_values_that_are_not_finite_leave_a_gap(run_dir):
    write_metrics(run_dir, **{"val/loss": float("nan")})
    page = write_report(run_dir).read_text()
    assert "Diverged" in page
    assert "NaN" not in json.dumps(embedded(page, "charts"))


def test_what_was_passed_over_is_told(run_dir):
    """One step that is not finite is no divergence, though its loss is logged."""
    with (run_dir / "metrics.csv").open("a") as file:
        file.write("309,nan\n")
    steps = [(7, "skipped"), (40, "spike"), *((at, "skipped") for at in (57, 101, 309))]
    lines = [json.dumps({"step": step, "event": event}) for step, event in steps]
    # The last line is of a process that was killed.
    (run_dir / "unusual_steps.jsonl").write_text("\n".join([*lines, '{"step": 3']))
    (run_dir / "skipped.jsonl").write_text('{"image": "a.png"}\n{"image": "b.png"}\n')
    page = write_report(run_dir).read_text()
    assert "Learning well" in page
    for name, count, note in (
        ("Skipped steps", 4, "… 57, 101, 309 in unusual_steps.jsonl"),
        ("Loss spikes", 1, "40 in unusual_steps.jsonl"),
        ("Unreadable images", 2, "in skipped.jsonl"),
    ):
        assert f"<dt>{name}</dt><dd>{count} <span>{note}</span></dd>" in page
    record = read_run(run_dir)
    assert record.skipped_in_a_row == 1
    assert replace(record, skipped_steps=[308, 309, 310]).skipped_in_a_row == 3
    assert replace(record, skipped_steps=[306, 307, 308]).skipped_in_a_row == 0


@pytest.mark.parametrize("state", ["finished", "running", "interrupted", "failed"])
def test_a_summary_is_shown_once_the_run_is_finished(run_dir, state):
    """Before, it is of an earlier run in the same directory, or of this one when it was shorter."""
    summary = {"seconds": 65.0, "images_per_second": 1e4, "peak_memory_bytes": 2.0**33}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    facts = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps(facts | {"state": state}))
    page = write_report(run_dir).read_text()
    shown = ("1e+04", "8.00", "1 min 05 s") if state == "finished" else ("100", "1.00", None)
    for name, value in zip(("Throughput", "Peak memory", "Took"), shown, strict=True):
        if value is None:
            assert f"<dt>{name}</dt>" not in page
        else:
            assert f"<dt>{name}</dt><dd>{value}" in page
    (run_dir / "run.json").unlink()  # as earlier versions left it
    assert read_run(run_dir).summary == summary
    assert read_run(run_dir).state == "finished"


def test_rows_that_will_be_dropped_are_not_shown(run_dir):
    row = {"step": 120, "train/loss": 0.5}
    curve = read_run(run_dir, row, first_step=100).curve("train/loss")
    assert curve.steps == [*range(10, 101, 10), 121]
    page = write_report(run_dir, first_step=0).read_text()
    assert embedded(page, "charts") == []
    assert "<dt>Steps</dt>" not in page


def test_the_validation_of_final_weights_belongs_to_the_last_step(run_dir):
    """Within an epoch it is logged after that step, and not with it."""
    with (run_dir / "metrics.csv").open("w") as file:
        file.write("step,train/loss,val/loss\n298,0.8,\n299,0.7,\n300,,0.6\n")
    record = read_run(run_dir)
    assert record.steps == 300
    assert record.curve("train/loss").steps == [299, 300]
    assert record.curve("val/loss").steps == [300]
    assert "300 <span>of 300</span>" in write_report(run_dir).read_text()


def test_a_page_that_cannot_take_its_place_leaves_nothing(run_dir):
    for name in ("report.html", "run.json"):
        (run_dir / name).unlink(missing_ok=True)
        (run_dir / name).mkdir()
    with pytest.raises(OSError, match="report"):
        write_report(run_dir)
    with pytest.raises(OSError, match="run"):
        write_facts(run_dir, {})
    assert not list(run_dir.glob("*.partial"))


def test_thousands_of_steps_keep_the_page_small_and_their_spikes(run_dir):
    losses = [1 / (step + 1) for step in range(50_000)]
    losses[31_415] = 9.0
    rows = "".join(f"{step},{loss}\n" for step, loss in enumerate(losses))
    (run_dir / "metrics.csv").write_text("step,train/loss\n" + rows)
    page = write_report(run_dir).read_text()
    chart = embedded(page, "charts")[0]
    assert len(chart["data"][0]) < 1000
    assert chart["data"][1][chart["data"][0].index(31_416)] == 9.0
    assert len(page) < 1_000_000


def test_every_picture_and_chart_has_words(run_dir):
    page = write_report(run_dir).read_text()
    assert not re.findall(r"<img(?![^>]*\balt=\"[^\"]+\")[^>]*>", page)
    assert not re.findall(r"<div class=\"plot\"(?![^>]*\baria-label=\"[^\"]+\")[^>]*>", page)
    assert page.count("<caption>") == page.count("<table>") > 0


def test_a_sweep_compares_its_runs(run_dir, tmp_path):
    run_dir.rename(tmp_path / "a")
    run_dir.mkdir()
    run_dir.rename(tmp_path / "b")
    (tmp_path / "b" / ".hydra").mkdir()
    (tmp_path / "b" / ".hydra" / "resolved.yaml").write_text(
        "{config: {objective: val/loss}, overrides: [mask.ratio=0.9]}"
    )
    (tmp_path / "b" / "failure.txt").write_text("exit code 3")
    write_report(tmp_path / "a")
    page = write_sweep_report(tmp_path).read_text()
    assert "they differ in mask.ratio" in page
    assert 'href="a/report.html"' in page
    assert "exit code 3" in page
    assert [series["name"] for series in embedded(page, "charts")[0]["series"]] == [
        "ratio 0.6, root </script><b>"
    ]


def test_the_command_tells_runs_from_sweeps_and_from_neither(run_dir, capsys):
    report.main([str(run_dir), str(run_dir.parent)])
    assert (run_dir / "report.html").is_file()
    assert "they differ" not in (run_dir.parent / "report.html").read_text()
    with pytest.raises(UserError, match="is no run directory"):
        report.write(run_dir / "reconstructions", 24)
