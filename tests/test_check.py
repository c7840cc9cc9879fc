"""`python -m simmim.check`, and runs on folders with images that cannot be read."""

import json
from pathlib import Path

import pytest
import torch
from broken_images import BREAKINGS, picture, write_folder
from conftest import TINY, pack
from safetensors.torch import load_file

from simmim.utils.errors import UserError

pytestmark = pytest.mark.unchecked


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check(run, *options: str, name: str = "run") -> int:
    """Its exit code."""
    try:
        run("check", *options, "processes=2", name=name)
    except SystemExit as ended:
        return ended.code
    return 0


def test_what_a_run_could_not_read_is_listed_and_the_rest_described(run, tmp_path, capsys):
    reasons = write_folder(tmp_path / "images", 120, 12)
    (tmp_path / "images" / "b" / "copy.jpg").write_bytes(
        (tmp_path / "images" / "a" / "0000.jpg").read_bytes()
    )
    assert check(run, f"data.root={tmp_path / 'images'}") == 1
    bad = {line["image"]: line["reason"] for line in lines(tmp_path / "run" / "bad.jsonl")}
    assert bad.keys() == reasons.keys()
    assert all(part in bad[image] for image, part in reasons.items())
    figures = json.loads((tmp_path / "run" / "check.json").read_text())
    assert figures["images"] == 121
    assert figures["unreadable"] == 12
    assert sum(figures["reasons"].values()) == 12
    assert figures["formats"]["JPEG"] == 121 - 12 - 3  # by their content, three are PNG
    assert figures["value_types"] == {"uint8": 109}
    assert figures["height"] == {"min": 40, "median": 40, "max": 40}
    assert figures["pixels"]["max"] == 1600
    assert figures["duplicates"] == 1
    [repeated] = lines(tmp_path / "run" / "duplicates.jsonl")
    assert {Path(repeated[key]).name for key in ("image", "same_as")} == {"0000.jpg", "copy.jpg"}
    assert "cannot be read" in capsys.readouterr().out
    # The list serves a run, and another check.
    root = [f"data.root={tmp_path / 'images'}", f"data.exclude={tmp_path / 'run' / 'bad.jsonl'}"]
    assert check(run, *root, name="again") == 0
    assert json.loads((tmp_path / "again" / "check.json").read_text())["images"] == 109


def test_damaged_shards_are_told(run, tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    for number in range(8):
        picture(number).save(files / f"{number}.png")
    BREAKINGS["empty"].write(files / "3.jpg")
    shards = pack(files, tmp_path / "shards", 5)
    damaged = shards / "001.tar"
    damaged.write_bytes(damaged.read_bytes()[:9000])
    options = ["data=webdataset", f"data.root={shards}"]
    assert check(run, *options) == 1
    figures = json.loads((tmp_path / "run" / "check.json").read_text())
    assert list(figures["damaged_shards"]) == [str(damaged)]
    [entry] = lines(tmp_path / "run" / "bad.jsonl")
    assert entry == {"image": f"{shards}/000.tar/3.jpg", "reason": "it is empty"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data=demo"], "there is no file to check; use data=imagefolder"),
        (["data=imagefolder"], "set data.root=DIR"),
        (["processes=0"], "processes 0 is not positive"),
    ],
)
def test_what_cannot_be_checked_is_told(run, options, message):
    with pytest.raises(UserError, match=message):
        run("check", *options)


def test_a_run_lists_and_counts_what_it_cannot_read_whoever_reads_it(run, tmp_path, caplog):
    """And resumed, it lists nothing twice."""
    caplog.set_level("INFO")
    reasons = write_folder(tmp_path / "images", 60, 6)
    options = [*TINY, "data=imagefolder", f"data.root={tmp_path / 'images'}", "data.val_ratio=0.1"]
    # 54 are trained on.
    options += ["data.batch_size=6", "trainer.max_epochs=2", "reconstructions.count=0"]
    options += ["save.every_n_steps=3", "save.keep=9"]
    summary = run("pretrain", *options, name="whole")
    assert summary["unreadable_images"] == 6
    assert "6 of 60 images could not be read: see" in caplog.text
    whole = lines(tmp_path / "whole" / "skipped.jsonl")
    assert {line["image"] for line in whole} == reasons.keys()
    run("pretrain", *options, "data.num_workers=2", name="workers")
    assert sorted(map(str, lines(tmp_path / "workers" / "skipped.jsonl"))) == sorted(
        map(str, whole)
    )
    weights, expected = (
        load_file(tmp_path / name / "encoder.safetensors") for name in ("workers", "whole")
    )
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-00000003.ckpt"
    (tmp_path / "whole" / "checkpoints" / "last.ckpt").unlink()
    summary = run("pretrain", *options, f"resume={checkpoint}", name="whole")
    assert summary["unreadable_images"] == 6
    assert lines(tmp_path / "whole" / "skipped.jsonl") == whole
    with pytest.raises(UserError, match="6 of 60 images could not be read, which is more than"):
        run("pretrain", *options, "data.max_bad_fraction=0.05", "data.num_workers=1", name="strict")
