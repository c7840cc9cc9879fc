"""Hugging Face datasets: at random from a disk, as streams, labels by name."""

from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from test_shards import png
from test_streams import batches

from simmim import create_encoder
from simmim.data import hf
from simmim.data.transforms import CenterCrop
from simmim.models.classifier import Classifier
from simmim.tasks.classification.evaluation import place_labels, rank_outputs
from simmim.tasks.classification.metrics import ValidationAccuracy
from simmim.tasks.classification.module import ClassificationModule
from simmim.tasks.evaluation import EvaluationModule
from simmim.training.optim import AdamWRecipe
from simmim.utils.errors import UserError


def rows(numbers: range) -> datasets.Dataset:
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["a", "b", "c"]),
            "word": datasets.Value("string"),
            "price": datasets.Value("float32"),
        }
    )
    columns = {
        "picture": [Image.new("RGB", (4, 4), (number,) * 3) for number in numbers],
        "kind": [number % 3 for number in numbers],
        "word": ["xyz"[number % 3] for number in numbers],
        "price": [1.0 for _ in numbers],
    }
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A dataset of two splits as `save_to_disk` leaves it; image n is of shade n, its label n % 3."""
    folder = tmp_path_factory.mktemp("saved")
    splits = {"train": rows(range(40)), "test": rows(range(100, 105))}
    datasets.DatasetDict(splits).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> Path:
    """The same as a folder of four parquet files, to be streamed."""
    folder = tmp_path_factory.mktemp("parquet")
    for part in range(4):
        rows(range(part * 16, part * 16 + 16)).to_parquet(folder / f"train-{part}.parquet")
    rows(range(100, 105)).to_parquet(folder / "test-0.parquet")
    return folder


LABELS = {
    "kind": [0, None, 1, -1, 2, 0, 1, 2],
    "word": ["x", None, "y", None, "z", "x", "y", "z"],
    "number": [0, None, 1, -1, 2, 0, 1, 2],
}


@pytest.fixture(scope="module")
def partly(tmp_path_factory) -> Path:
    """A folder of one parquet file a split: of eight training images two have no label."""
    folder = tmp_path_factory.mktemp("partly")
    kinds = {
        "kind": datasets.ClassLabel(names=["a", "b", "c"]),
        "word": datasets.Value("string"),
        "number": datasets.Value("int64"),
    }
    features = datasets.Features({"picture": datasets.Image()} | kinds)
    for split, places in (("train", range(8)), ("test", [0, 2, 4]), ("validation", [3, 3, 3])):
        columns = {name: [values[place] for place in places] for name, values in LABELS.items()}
        columns["picture"] = [Image.new("RGB", (4, 4), (place,) * 3) for place in places]
        split_rows = datasets.Dataset.from_dict(columns, features=features)
        split_rows.to_parquet(folder / f"{split}-0.parquet")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # The library waits for its threads at the end of each stream.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


def open_data(rank: int = 0, world_size: int = 1, **options):
    given = {
        "image_column": "picture",
        "label_column": "kind",
        "batch_size": 4,
        "num_workers": 0,
        "image_size": 4,
        "train_transform": torch.nn.Identity(),
        "seed": 1,
    } | options
    data = hf(**given)
    data._rank_and_world_size = lambda: {"rank": rank, "world_size": world_size}
    return data


def test_a_saved_dataset_is_read_at_random_with_its_labels(saved):
    data = open_data(root=saved, val_split="test")
    assert (len(data.train), len(data.val)) == (40, 5)
    assert data.train.classes == data.require_classes() == ("a", "b", "c")
    image, label = data.train.load(17)
    assert (image[:, 0, 0].tolist(), label) == ([17] * 3, 2)
    assert data.val.load(4)[0][0, 0, 0] == 104
    assert data.train.identifier(3) == f"{saved}[3]"
    seen = [shade for batch in batches(data) for shade in batch]
    assert sorted(seen) == list(range(40))


def test_two_ranks_of_two_workers_see_every_image_exactly_once_an_epoch(saved):
    seen = []
    for rank in (0, 1):
        data = open_data(root=saved, rank=rank, world_size=2, num_workers=2, val_split="test")
        seen += [shade for batch in batches(data) for shade in batch]
    assert sorted(seen) == list(range(40))


def test_a_share_is_held_out_where_there_is_no_other_split(saved):
    data = open_data(root=saved, val_ratio=0.2)
    held_out, train = (
        {int(part.load(index)[0][0, 0, 0]) for index in range(len(part))}
        for part in (data.val, data.train)
    )
    assert (len(held_out), len(train)) == (8, 32)
    assert held_out | train == set(range(40))


def test_without_training_all_of_the_split_is_held_out(saved):
    assert len(open_data(root=saved, train_transform=None).val) == 40
    data = open_data(root=saved, train_transform=None, val_split="test")
    assert (len(data.train), len(data.val)) == (0, 5)


def test_words_are_classes_by_name_and_no_column_means_no_labels(saved):
    data = open_data(root=saved, label_column="word", val_split="test")
    assert data.train.classes == ("x", "y", "z")
    assert data.train.load(4)[1] == 1
    assert data.val.load(0)[1] == 100 % 3
    unlabelled = open_data(root=saved, label_column=None)
    assert unlabelled.train.classes == ()
    assert unlabelled.train.load(0)[1] == -1


def test_a_stream_gives_every_image_once_to_ranks_and_workers(parquet):
    seen = []
    for rank in (0, 1):
        data = open_data(
            name=str(parquet),
            streaming=True,
            val_split="test",
            samples_per_epoch=64,
            rank=rank,
            world_size=2,
            num_workers=2,
        )
        mine = batches(data)
        assert len(mine) == 8
        seen += [shade for batch in mine for shade in batch]
    assert sorted(seen) == list(range(64))
    held_out = [int(data.val.load(index)[0][0, 0, 0]) for index in range(len(data.val))]
    assert held_out == [100, 101, 102, 103, 104]


def test_a_stream_is_a_function_of_seed_and_epoch_and_goes_on_exactly(parquet):
    def opened(**options):
        given = {"streaming": True, "val_split": "test", "samples_per_epoch": 64} | options
        return open_data(name=str(parquet), **given)

    whole = batches(opened(), epoch=1)
    assert batches(opened(), epoch=1) == whole
    assert batches(opened(), epoch=2) != whole
    assert batches(opened(seed=2), epoch=1) != whole
    two = batches(opened(num_workers=2), epoch=1)
    assert batches(opened(num_workers=2), epoch=1, skipped=5) == two[5:]


def test_a_streams_first_images_are_held_out_and_its_labels_named(parquet):
    data = open_data(name=str(parquet), streaming=True, val_size=6, samples_per_epoch=58)
    assert [int(data.val.load(index)[0][0, 0, 0]) for index in range(6)] == list(range(6))
    seen = {shade for batch in batches(data) for shade in batch}
    assert seen <= set(range(6, 64))
    parts = [{image.data for image in data.train.read_part(0, part, 4)} for part in range(4)]
    held_out = {image.data for image in data.val.images}
    assert sum(map(len, parts)) == len(set().union(*parts)) == 58
    assert not held_out & set().union(*parts)
    [batch] = open_data(
        name=str(parquet), streaming=True, val_size=6, samples_per_epoch=4
    ).train_dataloader()
    assert batch.label.tolist() == (batch.image[:, 0, 0, 0] % 3).tolist()


def test_with_fewer_files_than_readers_each_keeps_its_share(parquet):
    data = open_data(name=str(parquet), streaming=True, val_split="test", samples_per_epoch=64)
    parts = [{image.data for image in data.train.read_part(0, part, 6)} for part in range(6)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 64


@pytest.mark.parametrize("column", LABELS)
def test_a_missing_label_is_one_image_s_and_trains_what_needs_none(partly, column):
    data = open_data(name=str(partly), label_column=column, val_split="test")
    found = [data.train.load(index)[1] for index in range(len(data.train))]
    assert found == [0, -1, 1, -1, 2, 0, 1, 2]
    assert len(data.train.classes) == 3
    assert sum(len(batch.image) for batch in data.train_dataloader()) == 8


@pytest.mark.parametrize("column", LABELS)
def test_a_missing_label_is_told_where_labels_are_needed(partly, column):
    given = {"name": str(partly), "label_column": column}
    message = r"^2 of 8 training images have no label .*, as .*\[1\]; leave them out"
    with pytest.raises(UserError, match=message):
        open_data(**given, val_split="test").require_classes()
    with pytest.raises(UserError, match=r"^2 of 8 held-out images .*name splits that have labels"):
        open_data(**given, train_split="test", val_split="train").require_classes()


def test_a_split_of_hidden_labels_makes_no_classes(partly):
    data = open_data(name=str(partly), label_column="number", val_split="validation")
    assert data.val.classes == ("0", "1", "2")
    hidden = open_data(name=str(partly), label_column="number", train_split="validation")
    assert hidden.train.classes == ()
    with pytest.raises(UserError, match=r"0 classes; .*name a data\.label_column"):
        hidden.require_classes()


def create_trainer() -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", enable_checkpointing=False, **quiet)


def training_task(model, data) -> ClassificationModule:
    return ClassificationModule(
        model,
        classes=data.train.classes,
        normalisation=data.normalisation,
        optimization=AdamWRecipe(lr=1e-3, weight_decay=0.0),
        batch_size=4,
        total_steps=2,
        steps_per_epoch=2,
        seed=0,
    )


@pytest.mark.parametrize("is_trained", [True, False])
def test_a_missing_label_of_a_stream_is_told_when_it_comes(partly, is_trained):
    given = {"streaming": True, "samples_per_epoch": 8, "train_transform": CenterCrop(32)}
    data = open_data(name=str(partly), val_split="test", **given)
    assert data.require_classes() == ("a", "b", "c")
    encoder = create_encoder("swinv2_nano", image_size=32, embed_dim=8, depths=[1], num_heads=[1])
    model, trainer = Classifier(encoder, 3), create_trainer()
    with pytest.raises(UserError, match=r"^\d of 4 images of a batch have no label"):
        if is_trained:
            trainer.fit(training_task(model, data), data.train_dataloader())
        else:
            place = partial(place_labels, rows=torch.arange(3))
            task = EvaluationModule(
                model, ValidationAccuracy(3), rank_outputs, data.normalisation, label=place
            )
            trainer.validate(task, data.train_dataloader(), verbose=False)
    held_out = open_data(name=str(partly), val_split="train", **given)
    with pytest.raises(UserError, match=r"^2 of 8 held-out images have no label"):
        held_out.require_classes()


def test_a_downloaded_dataset_is_read_at_random(parquet):
    data = open_data(name=str(parquet), val_split="test")
    assert (len(data.train), len(data.val)) == (64, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": None}, "needs data.root=DIR"),
        ({"name": "also"}, "and not both"),
        ({"root": "nowhere"}, "nowhere is no dataset that save_to_disk wrote"),
        ({"image_column": "image"}, "data.image_column image does not exist; use one of picture"),
        ({"image_column": "price"}, "data.image_column price holds no images"),
        ({"label_column": "label"}, "data.label_column label does not exist"),
        ({"label_column": "price"}, "data.label_column price holds no labels"),
        ({"train_split": "dev"}, "data.train_split dev does not exist; use one of train, test"),
        ({"val_split": "dev"}, "data.val_split dev does not exist"),
        ({"val_ratio": 1.5}, "leaves a part empty"),
        ({"streaming": True}, "data.streaming=true is for data.name"),
        ({"samples_per_epoch": 5}, "is for data.streaming=true"),
        ({"val_size": 0}, "is not positive"),
    ],
)
def test_a_mistake_is_told_with_the_way_out(saved, options, message):
    with pytest.raises(UserError, match=message):
        open_data(**{"root": saved} | options)


FORMATS = {
    "torch": {"type": "torch", "columns": ["kind"]},
    "numpy": {"type": "numpy"},
    "pandas": {"type": "pandas"},
    "arrow": {"type": "arrow", "columns": ["picture"]},
    "not installed": {"type": "python"},
}


@pytest.mark.parametrize("how", FORMATS)
def test_the_format_that_a_dataset_was_saved_with_hides_nothing(tmp_path, how):
    rows(range(8)).with_format(**FORMATS[how]).save_to_disk(tmp_path)
    if how == "not installed":
        state = (tmp_path / "state.json").read_text()
        changed = state.replace('"_format_type": null', '"_format_type": "tensorflow"')
        assert changed != state
        (tmp_path / "state.json").write_text(changed)
    data = open_data(root=tmp_path, val_ratio=0.2)
    assert data.require_classes() == ("a", "b", "c")
    seen = {}
    for part in (data.train, data.val):
        for index in range(len(part)):
            image, label = part.load(index)
            seen[int(image[0, 0, 0])] = label
    assert seen == {number: number % 3 for number in range(8)}


ARRAY = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
IMAGES = {
    "struct": (
        {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        [{"bytes": png(number), "path": None} for number in range(8)],
    ),
    "binary": (datasets.Value("large_binary"), [png(number) for number in range(8)]),
    "path": (datasets.Value("string"), [f"{number}.png" for number in range(8)]),
    "array": (datasets.Array3D((4, 4, 3), "uint8"), ARRAY),
    "lists": (datasets.List(datasets.List(datasets.List(datasets.Value("uint8")))), ARRAY.tolist()),
    "several": (
        datasets.List(datasets.Image()),
        [
            [{"bytes": png(number), "path": None}, {"bytes": png(99), "path": None}]
            for number in range(8)
        ],
    ),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_are_read_of_whatever_type_their_column_is(tmp_path, kind, caplog):
    feature, values = IMAGES[kind]
    if kind == "path":
        for number, name in enumerate(values):
            (tmp_path / name).write_bytes(png(number))
        values = [str(tmp_path / name) for name in values]
    columns = {"picture": values, "kind": [False, True] * 4}
    features = datasets.Features(picture=feature, kind=datasets.Value("bool"))
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "saved")
    data = open_data(root=tmp_path / "saved", val_ratio=0.2)
    seen = {}
    for part in (data.train, data.val):
        for index in range(len(part)):
            image, label = part.load(index)
            assert image.dtype == torch.uint8
            seen[int(image[0, 0, 0])] = label
    assert seen == {number: number % 2 for number in range(8)}


def test_splits_that_were_saved_one_by_one_are_found_by_any_spelling(tmp_path):
    rows(range(6)).save_to_disk(tmp_path / "Train")
    rows(range(3)).save_to_disk(tmp_path / "test")
    data = open_data(root=tmp_path, val_split="test")
    assert (len(data.train), len(data.val)) == (6, 3)


def test_a_name_that_cannot_be_loaded_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded"):
        open_data(name=str(tmp_path / "nothing"))


def test_a_stream_of_unknown_length_is_refused(parquet):
    with pytest.raises(UserError, match=r"set data\.samples_per_epoch=N"):
        open_data(name=str(parquet), streaming=True, val_split="test")
