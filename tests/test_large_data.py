"""The stages on shards, on Hugging Face datasets and on images of many bands."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import tifffile
import torch
from conftest import TINY, pack
from PIL import Image
from safetensors.torch import load_file

import simmim
from simmim.checkpoints.read import read_weights
from simmim.utils.errors import UserError

pytestmark = pytest.mark.unchecked


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Four shards of six pictures of two classes."""
    generator = np.random.default_rng(0)
    for number in range(24):
        folder = tmp_path / "files" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (40, 36, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return pack(tmp_path / "files", tmp_path / "shards", 6)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "encoder.safetensors")


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("kind", ["disk", "stream"])
def test_a_resumed_run_on_shards_equals_one_that_was_not_interrupted(
    run, tmp_path, shards, kind, workers
):
    """5 steps an epoch; stopped within the second."""
    root = [f"data.root={shards}", "data.val_ratio=0.1"]
    if kind == "stream":
        root = [
            f"data.root='file://{shards}/{{000..003}}.tar'",
            "data.samples_per_epoch=20",
            "data.shuffle_buffer=4",
        ]
    options = [*TINY, "data=webdataset", *root, f"data.num_workers={workers}"]
    options += ["reconstructions.count=0", "save.keep=100", "trainer.max_steps=8"]
    run("pretrain", *options, "save.every_n_steps=6", name="whole")
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-00000006.ckpt"
    run("pretrain", *options, f"resume={checkpoint}", name="resumed")
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_on_shards_does_not_depend_on_the_number_of_workers(run, tmp_path, shards):
    options = [*TINY, "data=webdataset", f"data.root={shards}", "trainer.max_steps=6"]
    for workers in (0, 2):
        run("pretrain", *options, f"data.num_workers={workers}", name=str(workers))
    one, other = weights(tmp_path / "0"), weights(tmp_path / "2")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_shards_with_labels_are_fine_tuned_on_and_judged(run, tmp_path, shards):
    data = ["data=webdataset", f"data.root={shards}", "data.num_workers=0", "data.batch_size=4"]
    options = [*TINY, *data, "model=swinv2_t", "trainer.max_steps=1", "data.val_ratio=0.25"]
    run("finetune", *options, name="finetuned")
    classifier = simmim.load_classifier(tmp_path / "finetuned" / "classifier.safetensors")
    assert classifier.classes == ("a", "b")
    summary = run(
        "evaluate", *data, f"checkpoint={tmp_path / 'finetuned'}", "trainer=cpu", name="judged"
    )
    assert summary["images"] == 24


def test_a_hugging_face_dataset_is_pretrained_on(run, tmp_path, shards):
    paths = sorted(map(str, (tmp_path / "files").rglob("*.png")))
    images = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    images.save_to_disk(tmp_path / "saved")
    summary = run(
        "pretrain", *TINY, "data=hf", f"data.root={tmp_path / 'saved'}", "trainer.max_steps=2"
    )
    assert summary["training_images"] == 23
    assert summary["steps"] == 2


BANDS = [
    *TINY,
    "experiment=satvision_like",
    "model.image_size=32",
    "mask.patch_size=4",
    "optim.warmup_epochs=0",
]


@pytest.mark.parametrize(("kind", "dtype"), [("npy", np.float32), ("tif", np.uint16)])
def test_fourteen_bands_are_pretrained_on_and_travel_with_their_statistics(
    run, tmp_path, kind, dtype
):
    generator = np.random.default_rng(0)
    scales = 100 * np.arange(1, 15)[:, None, None]
    (tmp_path / "images").mkdir()
    for number in range(10):
        values = (generator.uniform(0.5, 1.5, (14, 40, 36)) * scales).astype(dtype)
        if kind == "npy":
            values[0, 0, :3] = np.nan
            np.save(tmp_path / "images" / f"{number}.npy", values)
        else:
            path = tmp_path / "images" / f"{number}.tif"
            tifffile.imwrite(path, values, photometric="minisblack", planarconfig="separate")
    mean, std = scales.flatten().astype(float), 0.3 * scales.flatten()
    file = tmp_path / "statistics.json"
    file.write_text(json.dumps({"mean": mean.tolist(), "std": std.tolist()}))
    summary = run(
        "pretrain",
        *BANDS,
        "data=imagefolder",
        f"data.root={tmp_path / 'images'}",
        f"data.statistics={file}",
        "data.val_ratio=0.2",
        "trainer.max_steps=2",
    )
    metrics = summary["metrics"]
    assert 0.3 < metrics["val/loss"] < 3
    # Noise of unit variance, uniform (0.87 from its mean) before it is resized, in every band.
    assert 0.5 < metrics["val/baseline_visible_mean"] < 0.9
    with Image.open(tmp_path / "run" / "reconstructions" / "step-00000002.png") as picture:
        assert len(picture.getcolors(1 << 24)) > 100
    description = read_weights(tmp_path / "run").description
    assert description["mean"] == mean.tolist()
    assert description["std"] == std.tolist()
    encoder = simmim.load_encoder(tmp_path / "run")
    assert encoder(torch.zeros(1, 14, 32, 32)).shape[:2] == (1, encoder.channels[-1])


def test_other_channels_than_the_models_are_refused_with_the_way_out(run, tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(3):
        np.save(tmp_path / "images" / f"{number}.npy", np.zeros((4, 8, 8), np.uint8))
    data = ["data=imagefolder", f"data.root={tmp_path / 'images'}"]
    with pytest.raises(UserError, match=r"4 channels and model\.in_channels is 3"):
        run("pretrain", *TINY, *data, "data.mean=[1,1,1,1]", "data.std=[1,1,1,1]")
    with pytest.raises(UserError, match="not one of 3 channels"):
        run("pretrain", *TINY, *data)
    with pytest.raises(UserError, match=r"use augmentation\.rand_augment=null"):
        run("finetune", *TINY, *data, "model=swinv2_t", "data.mean=[1,1]", "data.std=[1,1]")
