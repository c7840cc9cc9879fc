"""Loader workers that start afresh, not forked: spawn (macOS's way), forkserver (Python 3.14's)."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from test_shards import png, write_tar

from simmim.data import ImageDataModule, demo, hf, imagefolder, webdataset
from simmim.data.dataset import SampleKey
from simmim.data.transforms import light_augmentation, strong_augmentation

datasets.disable_progress_bars()


def add_images(folder: Path) -> Path:
    for number in range(8):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return folder


def add_shards(folder: Path) -> Path:
    for shard in range(2):
        members = {f"{n}.png": png(n) for n in range(4 * shard, 4 * shard + 4)}
        write_tar(folder / f"{shard}.tar", members)
    return folder


def add_rows(folder: Path) -> Path:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [Image.open(io.BytesIO(png(n))) for n in range(8)], "label": [0, 1] * 4}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder)
    return folder


KINDS: dict[str, Callable[..., ImageDataModule]] = {
    "demo": lambda folder, **given: demo(train_size=8, val_size=4, **given),
    "imagefolder": lambda folder, **given: imagefolder(root=add_images(folder), **given),
    "webdataset": lambda folder, **given: webdataset(root=str(add_shards(folder)), **given),
    "streamed": lambda folder, **given: webdataset(
        root=f"file://{add_shards(folder)}/0.tar",
        val_root=f"file://{folder}/1.tar",
        samples_per_epoch=4,
        **given,
    ),
    "hf": lambda folder, **given: hf(root=add_rows(folder), **given),
}


def open_data(kind: str, folder: Path, **options: Any) -> ImageDataModule:
    given = {"image_size": 16, "batch_size": 2, "num_workers": 0, "seed": 0} | options
    given.setdefault("train_transform", light_augmentation(16))
    return KINDS[kind](folder, **given)


@pytest.mark.parametrize(
    "transform", [torch.nn.Identity(), light_augmentation(16), strong_augmentation(16)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sent_to_a_worker_reads_the_same_there(
    tmp_path: Path, kind: str, transform: torch.nn.Module
) -> None:
    """The same is sent to spawned workers and by the fork server."""
    data = open_data(kind, tmp_path, train_transform=transform)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        sent = [loader.dataset, loader.collate_fn, loader.worker_init_fn]
        images, *_ = pickle.loads(pickle.dumps(sent))
        # Once more after reading, when files are open.
        for _ in range(2):
            key = SampleKey(0, 0)
            assert torch.equal(images[key].image, loader.dataset[key].image)
            images = pickle.loads(pickle.dumps(loader.dataset))


@pytest.mark.slow
def test_spawned_workers_give_the_batches_that_others_give(tmp_path: Path) -> None:
    add_images(tmp_path)
    data = open_data("imagefolder", tmp_path)
    expected = [batch.image for batch in data.train_dataloader()]
    loader = open_data("imagefolder", tmp_path, num_workers=1).train_dataloader()
    loader.multiprocessing_context = "spawn"
    spawned = [batch.image for batch in loader]
    assert all(map(torch.equal, spawned, expected))
    assert len(spawned) == len(expected) == 3
