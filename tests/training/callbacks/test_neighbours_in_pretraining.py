"""k-NN during pretraining: when it is measured, that it changes nothing, that ranks agree."""

import csv
import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, TINY_DEMO
from PIL import Image
from safetensors.torch import load_file
from started import check_started

import simmim
from simmim.data import demo
from simmim.data.transforms import CenterCrop
from simmim.evaluate.features import extract_features
from simmim.pretrain.knn import NearestNeighbours
from simmim.utils.errors import UserError
from simmim.utils.normalization import Normalisation

KNN = ["knn.k=3", "data.train_size=16"]


def measured(run_dir: Path) -> list[int]:
    """Steps at which the figure was logged."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row.get("val/knn_top1")]


def test_weights_are_those_of_a_run_without_it(run, tmp_path):
    options = [*TINY_DEMO, *KNN, "model.drop_path_rate=0.2", "trainer.max_epochs=3"]
    options += ["data.num_workers=1", "trainer.log_every_n_steps=1"]
    without = run("pretrain", *options, name="off")
    found = run("pretrain", *options, "knn.every_n_epochs=1", name="on")
    off, on = (load_file(tmp_path / name / "encoder.safetensors") for name in ("off", "on"))
    assert all(torch.equal(off[name], on[name]) for name in off)
    figure = found["metrics"].pop("val/knn_top1")
    assert 0 <= figure <= 1
    assert without["metrics"] == found["metrics"]
    assert measured(tmp_path / "on") == [3, 7, 11]


def test_it_is_measured_every_so_many_epochs_and_at_the_end(run, tmp_path):
    options = [*TINY_DEMO, *KNN, "knn.every_n_epochs=2", "trainer.max_steps=10"]
    summary = run("pretrain", *options)
    # Epochs of four steps: after the second, and after the last step in the middle of the third.
    assert measured(tmp_path / "run")[0] == 7
    assert len(measured(tmp_path / "run")) == 2
    assert "val/knn_top1" in summary["metrics"]


def test_the_figure_is_what_the_final_encoder_gives(run, tmp_path):
    options = ["data.val_size=100", "trainer.max_steps=2", "knn.every_n_epochs=1"]
    summary = run("pretrain", *TINY_DEMO, *KNN, *options)
    encoder = simmim.load_encoder(tmp_path / "run" / "encoder.safetensors").eval()
    images = demo(
        image_size=32,
        train_size=16,
        val_size=100,
        batch_size=4,
        num_workers=0,
        train_transform=CenterCrop(32),
    )
    train, val = (
        extract_features(
            encoder, images.evaluation_dataloader(source), Normalisation(), torch.device("cpu")
        )
        for source in (images.train, images.val)
    )
    similarity = torch.nn.functional.cosine_similarity(
        val.values[:, None], train.values[None], dim=2
    )
    right = 0
    for row, label in zip(similarity, val.labels, strict=True):
        votes = torch.zeros(len(images.train.classes))
        for place in row.topk(3).indices:
            votes[train.labels[place]] += torch.exp((row[place] - row.max()) / 0.07)
        right += int(votes.argmax() == label)
    assert summary["metrics"]["val/knn_top1"] == pytest.approx(right / 100)
    assert right > 0


def test_neighbours_are_looked_for_among_so_many(run):
    options = [*TINY_DEMO, *KNN, "knn.every_n_epochs=1", "trainer.max_steps=1"]
    run("pretrain", *options, "knn.max_train_images=3")
    with pytest.raises(UserError, match=r"knn.k 3 is more than the 2 training images"):
        run("pretrain", *options, "knn.max_train_images=2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs 0 is not positive"),
        ({"max_train_images": 0}, "max_train_images 0 is not positive"),
        ({"k": 0}, "knn.k 0 leaves nobody to vote"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        NearestNeighbours(**options)


def test_images_without_labels_are_refused_before_training(run, tmp_path):
    for number in range(8):
        path = tmp_path / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40)).save(path)
    data = ["data=imagefolder", f"data.root={tmp_path / 'images'}", "data.val_ratio=0.25"]
    run("pretrain", *TINY, *data, "trainer.max_steps=1")
    with pytest.raises(UserError, match=r"needs labelled images: .*; or set knn.every_n_epochs=nu"):
        run("pretrain", *TINY, *data, "knn.every_n_epochs=1", "knn.k=1", name="refused")
    assert not list((tmp_path / "refused").glob("**/*.ckpt"))


def test_two_processes_find_what_one_does(run, tmp_path):
    """61 held-out and 33 training images do not divide by two; the weights stay as they begin."""
    options = [option for option in TINY_DEMO if not option.startswith("trainer=")]
    options += ["trainer.accelerator=cpu", "trainer.max_steps=2", "optim.lr=1e-12"]
    options += ["knn.every_n_epochs=1", "knn.k=3", "data.train_size=33", "data.val_size=61"]
    one = run("pretrain", *options, "trainer.devices=1", "data.batch_size=8", name="one")
    two = ["data.batch_size=4", "run_dir=two"]
    check_started("simmim.pretrain", *options, *two, cwd=tmp_path, processes=2)
    found = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert found["metrics"]["val/knn_top1"] == one["metrics"]["val/knn_top1"] > 0
