"""The scripts beside the package: what they run, and the tables that they write."""

import csv
import importlib.util
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from PIL import Image
from started import check_started

from simmim.data import webdataset
from simmim.utils.errors import UserError

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

import amplitude  # noqa: E402
import channel_statistics  # noqa: E402
import gather_sweep  # noqa: E402
import memory_table  # noqa: E402
from commands import run  # noqa: E402
from make_shards import make_shards  # noqa: E402
from quickstart import Story, as_markdown, table_rows  # noqa: E402
from window_transfer import Cell  # noqa: E402
from window_transfer import as_markdown as as_paper  # noqa: E402

pytestmark = pytest.mark.unchecked


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


@pytest.mark.slow
def test_the_window_transfer_ablation_writes_its_table_and_plot(tmp_path):
    tiny = [option for option in TINY if option.startswith(("model.", "data.", "trainer"))]
    own = [option for option in tiny if not option.startswith("model.")]
    architecture = [option for option in tiny if "_size" not in option and "model." in option]
    shared = [*own, "data.train_size=16", "data.val_size=8", "trainer.max_steps=1"]
    check_started(
        str(SCRIPTS / "window_transfer.py"),
        "position_biases=[log_cpb]",
        "scales=[1.5]",
        "image_size=32",
        "window_size=4",
        f"pretrain=[{','.join(repr(option) for option in [*architecture, *shared])}]",
        f"finetune=[{','.join(map(repr, shared))}]",
        f"transfer=[{','.join(map(repr, shared))}]",
        "out=out",
        cwd=tmp_path,
    )
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


def test_values_in_brackets_are_no_markup(capsys):
    gather_sweep.print_table(["trainer.x", "val/loss"], [["[a,b]", "0.5"]], "sweep")
    assert "[a,b]" in capsys.readouterr().out


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


@pytest.mark.slow
def test_the_memory_table_measures_each_way_in_a_process_of_its_own():
    plain, both = (
        memory_table.in_own_process("swinv2_nano", "256/16", 4, memory_table.WAYS[way])
        for way in ("plain", "both")
    )
    assert plain["bytes"] > 1.2 * both["bytes"] > 0
    assert plain["seconds"] > 0


def test_a_folder_without_runs_is_told(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="holds no finished run of 0"):
        gather(tmp_path, monkeypatch)


def images(folder: Path) -> dict[str, bytes]:
    """Twelve pictures of two classes below a folder, and one that is none; the pictures' bytes."""
    written = {}
    for number in range(12):
        path = folder / ("ant", "bee.s")[number % 2] / f"picture.{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30 + number, 20), (number, 0, 0)).save(path)
        written[path.relative_to(folder).as_posix()] = path.read_bytes()
    (folder / "ant" / "broken.jpg").write_bytes(b"no image")
    return written


def test_shards_hold_the_files_byte_by_byte_with_their_labels(tmp_path):
    written = images(tmp_path / "images")
    made = make_shards(tmp_path / "images", tmp_path / "shards", shard_size=5, workers=2)
    assert sum(shard.images for shard in made) == 12
    [error] = [error for shard in made for error in shard.errors]
    assert "ant/broken.jpg" in error
    description = json.loads((tmp_path / "shards" / "dataset.json").read_text())
    assert description["samples"] == sum(description["shards"].values()) == 12
    data = webdataset(
        root=str(tmp_path / "shards"), image_size=8, batch_size=1, train_transform=None
    )
    assert data.val.classes == ("ant", "bee.s")
    packed = [data.val.read(index) for index in range(len(data.val))]
    assert sorted(packed) == sorted(written.values())
    assert packed != list(written.values())
    for index in range(len(data.val)):
        image, label = data.val.load(index)
        assert label == int(image[0, 0, 0]) % 2
    make_shards(tmp_path / "images", tmp_path / "again", shard_size=5, workers=1)
    for path in (tmp_path / "shards").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    make_shards(tmp_path / "images", tmp_path / "other", shard_size=5, workers=1, seed=1)
    first, other = (tmp_path / name / "shard-000000.tar" for name in ("again", "other"))
    assert first.read_bytes() != other.read_bytes()


def test_shards_of_a_flat_folder_have_no_labels_and_smaller_pictures_if_asked(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 32)).save(tmp_path / "images" / "large.jpg")
    Image.new("RGB", (16, 8)).save(tmp_path / "images" / "small.png")
    make_shards(tmp_path / "images", tmp_path / "shards", workers=1, max_side=32)
    with tarfile.open(tmp_path / "shards" / "shard-000000.tar") as tar:
        content = {member.name.split("-")[1]: tar.extractfile(member).read() for member in tar}
    assert set(content) == {"large.jpg", "small.png"}
    assert content["small.png"] == (tmp_path / "images" / "small.png").read_bytes()
    data = webdataset(
        root=str(tmp_path / "shards"), image_size=8, batch_size=1, train_transform=None
    )
    assert {tuple(data.val.load(index)[0].shape) for index in (0, 1)} == {(3, 16, 32), (3, 8, 16)}


def test_shards_are_made_of_one_part_and_of_what_lies_in_class_folders(tmp_path):
    images(tmp_path / "one")
    Image.new("RGB", (30, 20)).save(tmp_path / "one" / "stray.png")
    made = make_shards(tmp_path / "one", tmp_path / "shards", workers=1)
    assert sum(shard.images for shard in made) == 12
    assert any("stray.png lies beside the class folders" in error for error in made[-1].errors)
    for part in ("Train", "Val"):
        images(tmp_path / "both" / part)
    with pytest.raises(UserError, match=r"has the parts Train and Val; make shards of each"):
        make_shards(tmp_path / "both", tmp_path / "others")


def test_a_tiff_of_measured_values_is_packed_as_it_is(tmp_path):
    """Pillow, which makes pictures smaller, does not read it."""
    tifffile = pytest.importorskip("tifffile")
    (tmp_path / "images").mkdir()
    for number in range(2):
        values = np.random.default_rng(number).normal(size=(40, 40, 3)).astype(np.float32)
        tifffile.imwrite(tmp_path / "images" / f"{number}.tif", values, photometric="rgb")
    make_shards(tmp_path / "images", tmp_path / "shards", workers=1, max_side=20)
    data = webdataset(
        root=str(tmp_path / "shards"), image_size=8, batch_size=1, train_transform=None
    )
    assert data.val.load(0)[0].shape == (3, 40, 40)


def test_a_tiff_that_pillow_misreads_is_made_smaller_as_it_is_read(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    (tmp_path / "images").mkdir()
    for number in range(2):
        planes = np.full((3, 40, 40), 257 * 100 * (number + 1), np.uint16)
        tifffile.imwrite(tmp_path / "images" / f"{number}.tif", planes, photometric="rgb")
    make_shards(tmp_path / "images", tmp_path / "shards", workers=1, max_side=20)
    data = webdataset(
        root=str(tmp_path / "shards"), image_size=8, batch_size=1, train_transform=None
    )
    image = data.val.load(0)[0]
    assert image.shape == (3, 20, 20)
    assert image.unique().tolist() in ([100], [200])


def test_shards_are_not_written_over_others(tmp_path):
    images(tmp_path / "images")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not empty"):
        make_shards(tmp_path / "images", tmp_path / "images")
    with pytest.raises(UserError, match="holds no image"):
        make_shards(tmp_path / "empty", tmp_path / "shards")
    with pytest.raises(UserError, match="is not a folder"):
        make_shards(tmp_path / "none", tmp_path / "shards")
    with pytest.raises(UserError, match="must be positive"):
        make_shards(tmp_path / "images", tmp_path / "shards", shard_size=0)
    with pytest.raises(UserError, match="--max-side is for RGB"):
        make_shards(tmp_path / "images", tmp_path / "shards", channels=4, max_side=5)
    assert not (tmp_path / "shards").exists()


def test_channel_statistics_are_numpys_for_a_folder_and_for_its_shards(
    tmp_path, monkeypatch, capsys
):
    values = np.random.default_rng(0).normal(300, 40, (90, 4, 6, 5)).astype(np.float32)
    (tmp_path / "images").mkdir()
    for number, image in enumerate(values):
        np.save(tmp_path / "images" / f"{number}.npy", image)
    make_shards(tmp_path / "images", tmp_path / "shards", workers=1, channels=4, shard_size=40)
    for root in ("images", "shards"):
        options = [str(tmp_path / root), "--channels", "4", "--workers", "2"]
        file = tmp_path / f"{root}.json"
        monkeypatch.setattr(sys, "argv", ["", *options, "--out", str(file)])
        channel_statistics.main()
        printed = capsys.readouterr().out
        assert "90 images, 0 could not be read" in printed
        found = json.loads(file.read_text())
        np.testing.assert_allclose(found["mean"], values.mean((0, 2, 3), np.float64), rtol=1e-6)
        np.testing.assert_allclose(found["std"], values.std((0, 2, 3), np.float64), rtol=1e-6)
        assert f"mean: [{found['mean'][0]:.6g}, " in printed


@pytest.mark.slow
def test_the_data_path_is_measured_on_a_folder_of_jpegs(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 12, 3), np.uint8)
        Image.fromarray(pixels).resize((120, 80)).save(folder / f"{number}.jpg")
    out = tmp_path / "figures.json"
    options = ["--rounds", "1", "--image-size", "32", "--out", str(out)]
    table = subprocess.run(
        [sys.executable, SCRIPTS / "data_path.py", folder, *options],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    [figures] = json.loads(out.read_text())["folders"].values()
    assert figures["files"] == 2
    assert list(figures["ways"]) == ["official", "torchvision", "ours"]
    assert figures["difference"] < 3
    assert all(rate > 0 for rate, *_ in figures["ways"].values())
    assert "torchvision" in table


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("shift", [[], ["--plain"]])
def test_the_attention_benchmark_times_what_equals_the_reference(tmp_path, shift):
    check_started(
        str(SCRIPTS / "attention_benchmark" / "__main__.py"),
        *("--device", "cpu", "--types", "float32", "--tokens", "200", "--rounds", "1", *shift),
        *("--windows", "3", "--heads", "2", "--head-dim", "8", "--only", "sdpa math"),
        cwd=tmp_path,
    )
    [cell] = json.loads((tmp_path / "attention_benchmark.json").read_text())["cells"]
    assert cell["shifted"] is not bool(shift)
    result = cell["results"]["sdpa math"]
    assert "not_run" not in result
    assert len(result["step_ms"]) == len(result["forward_ms"]) == 1


def test_amplitudes_are_measured_before_and_after_training(tmp_path):
    untrained, trained = amplitude.follow(
        "res_post", 2, 0, steps=2, batch_size=2, learning_rate=1e-2
    )
    assert (untrained.step, trained.step) == (0, 2)
    assert len(untrained.amplitudes) == len(trained.amplitudes) == 4
    # Its gains start at 0: a block changes nothing until it has learned.
    assert untrained.growth == pytest.approx(1)
    assert trained.growth != pytest.approx(1, rel=1e-3)
    deep = trained.amplitudes[2:]
    assert trained.growth == max(deep) / min(deep)
    (only,) = amplitude.follow("pre", 2, 0, steps=0, batch_size=2, learning_rate=1e-2)
    assert only.growth > 1.001
    cells = [untrained, trained, only]
    table = amplitude.as_markdown(cells).splitlines()
    assert table[0] == "| norm | blocks | at initial values | after 2 steps | held-out masked L1 |"
    assert table[2].startswith(f"| pre-norm | 2 | {only.growth:.2f} ± 0.00 | – | – |")
    amplitude.plot(cells, tmp_path / "amplitude.png")
    assert Image.open(tmp_path / "amplitude.png").width > 300
