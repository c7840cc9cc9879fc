"""The stages with their defaults, augmentation among them, on images as people have them.

`make fast` has this for what a changed package does; test_documentation.py types README's commands.
"""

import math

import pytest
from documentation.commands import LENGTH
from documentation.mixed import labelled_images, mixed_images

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow, pytest.mark.unchecked]


def test_every_stage_takes_ordinary_images(run, tmp_path):
    """README's commands with its model for a CPU; a random operation is drawn about ten times each."""
    mixed_images(tmp_path / "DIR", 300)
    labelled_images(tmp_path / "LABELLED", train=240, val=60)
    labelled = ["data=imagefolder", f"data.root={tmp_path / 'LABELLED'}"]
    pretrained = run(
        "pretrain",
        *("model=swinv2_nano", "model.image_size=128", *LENGTH["pretrain"]),
        *("data=imagefolder", f"data.root={tmp_path / 'DIR'}"),
        name="first",
    )
    assert math.isfinite(pretrained["metrics"]["val/loss"])
    start = f"init.checkpoint={tmp_path / 'first'}"
    run("finetune", start, *labelled, *LENGTH["finetune"], name="labelled")
    larger = ["model.image_size=192", "model.window_size=12"]
    start = f"init.checkpoint={tmp_path / 'labelled'}"
    after = run("transfer", start, *larger, *labelled, *LENGTH["transfer"], name="larger")
    judged = run("evaluate", f"checkpoint={tmp_path / 'larger'}", *labelled, name="judged")
    assert judged["metrics"]["val/top1"] == after["metrics"]["val/top1"]
    assert (judged["images"], judged["classes"]) == (60, 3)
    assert list(tmp_path.rglob("skipped.jsonl")) == []
