"""Names of files that are not UTF-8, which some disks have: whatever writes them goes on."""

import csv
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

from simmim.cli.main import escape_names
from simmim.evaluate.stage import write_tables
from simmim.tasks.classification.confusion import Predictions
from simmim.tasks.classification.evaluation import tabulate
from simmim.training.callbacks.loss_spikes import SpikeDetector
from simmim.utils.files import as_json

pytestmark = pytest.mark.unchecked

ODD = os.fsdecode(b"caf\xe9")  # as Latin-1 has it
FOLDER = ["data=imagefolder", "trainer.max_steps=2", "logger=csv", "augmentation.flip=0"]


@pytest.fixture
def images(tmp_path) -> Path:
    """Two classes, one of them with such a name, as have all of its files."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in ("a", ODD):
            for number in range(4):
                path = tmp_path / "images" / split / folder / f"{number}{folder}.png"
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    picture = generator.integers(0, 256, (32, 32, 3), np.uint8)
                    Image.fromarray(picture).save(path)
                except OSError:
                    pytest.skip("this file system takes UTF-8 alone")
    return tmp_path / "images"


@pytest.mark.parametrize("indent", [None, 2])
def test_json_of_such_names_is_unicode_that_says_the_same(indent):
    content = {"image": f"{ODD}/größe.png", "images": ["猫", ODD]}
    text = as_json(content, indent)
    assert json.loads(text.encode()) == content
    assert "größe" in text
    assert "猫" in text


def test_standard_output_shows_them(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "utf-8", write_through=True))
    escape_names()
    print(ODD)
    assert written.getvalue() == b"caf\\udce9\n"


def test_an_unusual_step_and_reconstructions_name_such_images(run, tmp_path, images, monkeypatch):
    monkeypatch.setattr(SpikeDetector, "begins", lambda *_: True)
    monkeypatch.setattr(SpikeDetector, "median", 1.0)
    run("pretrain", *TINY, *FOLDER, f"data.root={images}", name="pretrained")
    lines = (tmp_path / "pretrained" / "unusual_steps.jsonl").read_text().splitlines()
    named = {name for line in lines for name in json.loads(line)["images"]}
    assert f"{images}/train/{ODD}/0{ODD}.png" in named
    start = [f"checkpoint={tmp_path / 'pretrained'}", "device=cpu"]
    run("reconstruct", *start, f"images={images / 'val'}", name="pictures")
    told = json.loads((tmp_path / "pictures" / "reconstructions.json").read_text())
    assert f"{images}/val/{ODD}/0{ODD}.png" in {entry["image"] for entry in told["images"]}


def test_tables_name_such_classes(tmp_path):
    labels = torch.tensor([0, 1, 1])
    answers = Predictions(labels, torch.tensor([1, 1, 1]), torch.tensor([True] * 3))
    tables, (first, _) = tabulate(answers, ["a", ODD], range(2))
    write_tables(tables, tmp_path)
    assert first.endswith(f"most often taken for {ODD}")
    for name in ("per_class", "confusion"):
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            assert [row["class"] for row in csv.DictReader(file)] == ["a", "caf\\udce9"]
