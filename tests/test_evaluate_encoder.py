"""Evaluation of an encoder without fine-tuning: nearest neighbours and a linear classifier."""

import csv
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_DEMO
from evaluating import FOLDER, labelled, write_classifier
from PIL import Image


@pytest.fixture
def classifier(tmp_path) -> Path:
    return write_classifier(tmp_path / "classifier.safetensors")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_neighbours_are_asked_of_held_out_images_alone(run, tmp_path, classifier, caplog):
    root = labelled(tmp_path / "images", ["cat", "dog"], count=20)
    data = ["data=imagefolder", f"data.root={root}", f"checkpoint={classifier}"]
    summary = run("evaluate", *FOLDER, *data, "mode=knn", "knn.k=1", "data.val_ratio=0.1")
    assert (summary["images"], summary["training_images"]) == (4, 36)
    assert "all its images are judged" not in caplog.text


@pytest.mark.parametrize(
    ("mode", "details"), [("knn", ["knn.k=3"]), ("linear", ["linear.l2=[0.1,0.01]"])]
)
def test_an_encoder_is_judged_without_fine_tuning(run, tmp_path, mode, details):
    run("pretrain", *TINY_DEMO, "trainer.max_steps=2", name="pretrained")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for number, name in enumerate(("red", "green", "blue")):
            for image in range(count):
                values = rng.integers(0, 100, (40, 40, 3))
                values[..., number] += 150
                path = tmp_path / "colours" / split / name / f"{image}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.astype(np.uint8)).save(path)
    data = ["data=imagefolder", f"data.root={tmp_path / 'colours'}", f"mode={mode}"]
    start = f"checkpoint={tmp_path / 'pretrained' / 'encoder.safetensors'}"
    summary = run("evaluate", *FOLDER, *data, *details, start)
    assert summary["metrics"] == {"val/top1": 1, "val/top5": 1}
    assert (summary["mode"], summary["images"], summary["training_images"]) == (mode, 9, 24)
    assert [row["correct"] for row in table(tmp_path / "run" / "per_class.csv")] == ["3"] * 3
    again = run("evaluate", *FOLDER, *data, *details, start, "data.num_workers=1", name="again")
    assert again["metrics"] == summary["metrics"]
