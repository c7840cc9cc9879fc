"""`data.decode=device`, with the CPU as device: the samples of workers but for the decoder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchvision
from conftest import TINY, compose, pack, run_within
from safetensors.torch import load_file
from test_lazy_image import as_jpeg, oriented, photograph
from torch.utils.data._utils.pin_memory import pin_memory

from simmim.cli import schema
from simmim.cli.main import find_stage
from simmim.data import ImageDataModule, imagefolder, webdataset
from simmim.data.dataset import Sample
from simmim.data.decoding import on_device
from simmim.data.transforms import light_augmentation, strong_augmentation
from simmim.utils.errors import UnreadableImageError, UserError

CPU = torch.device("cpu")
# Those whose crops workers take from a reduced scale differ by more.
FULL_SCALE = [(48, 60), (56, 56), (60, 41), (50, 61), (44, 44), (40, 60)]
REDUCED = [(120, 160), (250, 190)]


def without_a_table(data: bytes) -> bytes:
    """A JPEG file whose header and end are whole, and whose scan names a table that is not there."""
    scan = data.index(b"\xff\xda")
    return data[: scan + 6] + b"\x33" + data[scan + 7 :]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photographs of two classes, some of which only workers decode, and held-out ones."""
    files = {
        f"{number}.jpg": as_jpeg(photograph(*size))
        for number, size in enumerate([*FULL_SCALE, *REDUCED])
    }
    files |= {
        "8.jpg": as_jpeg(photograph(50, 60).convert("L")),
        "9.jpg": as_jpeg(photograph(50, 60), **oriented(6)),
        "a.jpg": as_jpeg(photograph(50, 60)) + b"what a camera left behind",
    }
    for number, (name, data) in enumerate(files.items()):
        write(tmp_path / "images/train" / "ab"[number % 2] / name, data)
    photograph(40, 50).save(tmp_path / "images/train/b/b.png")
    for name in ("a/v.jpg", "b/w.jpg"):
        write(tmp_path / "images/val" / name, as_jpeg(photograph(40, 50)))
    return tmp_path / "images"


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def open_data(folder: Path, decode: str, **options: Any) -> ImageDataModule:
    given = {"batch_size": 4, "num_workers": 0, "train_transform": light_augmentation(32)}
    data = imagefolder(root=folder, image_size=32, decode=decode, seed=5, **given | options)
    data.list_skipped(folder.parent, goes_on=False)
    return data


def epoch(data: ImageDataModule, number: int = 1) -> list[Sample]:
    """Its batches, sent to the device as a run does it."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    task = pl.LightningModule()
    return [task.transfer_batch_to_device(batch, CPU, 0) for batch in loader]


def joined(batches: list[Sample]) -> Sample:
    return Sample(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def compare(one: Sample, other: Sample) -> torch.Tensor:
    """Each image's mean absolute difference in 8-bit levels, of batches that are else the same."""
    assert torch.equal(one.label, other.label)
    assert torch.equal(one.sample_index, other.sample_index)
    assert one.image.dtype == other.image.dtype == torch.uint8
    assert one.image.shape == other.image.shape
    return (one.image.float() - other.image).abs().mean((1, 2, 3))


def listed(folder: Path) -> list[str]:
    path = folder.parent / "skipped.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return sorted(Path(json.loads(line)["image"]).name for line in lines)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_samples_are_those_of_workers_but_for_the_decoder(folder: Path, num_workers: int) -> None:
    by_workers, by_device = (
        open_data(folder, decode, num_workers=num_workers) for decode in ("workers", "device")
    )
    for number in (0, 1):
        one, other = joined(epoch(by_workers, number)), joined(epoch(by_device, number))
        assert len(one.image) == 12
        for index, levels in zip(one.sample_index, compare(one, other), strict=True):
            name = Path(by_device.train.identifier(int(index))).name
            most = 0.0 if name > "8" else 1.5 if name > "6" else 0.5
            assert levels <= most, name
    held_out = [next(iter(data.val_dataloader())).image for data in (by_workers, by_device)]
    assert torch.equal(*held_out)


def test_a_sample_is_a_function_of_its_key_however_many_devices_share_the_epoch(
    folder: Path,
) -> None:
    whole = joined(epoch(open_data(folder, "device")))
    for rank in (0, 1):
        data = open_data(folder, "device", batch_size=2)
        data._rank_and_world_size = lambda rank=rank: {"rank": rank, "world_size": 2}
        mine = joined(epoch(data))
        assert len(mine.image) == 6
        for index, image in zip(mine.sample_index, mine.image, strict=True):
            assert torch.equal(image, whole.image[whole.sample_index == index][0])


def test_a_batch_is_decoded_a_few_files_at_a_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = joined(epoch(open_data(folder, "device", batch_size=12)))
    counts = []
    decode = torchvision.io.decode_jpeg

    def counted(files: Any, **options: Any) -> Any:
        counts.append(len(files))
        return decode(files, **options)

    monkeypatch.setattr(torchvision.io, "decode_jpeg", counted)
    monkeypatch.setattr(on_device, "_MOST_PIXELS", 6000)
    in_parts = joined(epoch(open_data(folder, "device", batch_size=12)))
    assert torch.equal(in_parts.image, at_once.image)
    first, *parts = counts
    assert first == 1  # what is tried before a run
    assert sum(parts) == 8
    assert 1 < max(parts) < 8


def test_a_batch_passes_through_pinned_memory_and_can_be_sent_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone()
    )
    batch = next(iter(open_data(folder, "device", batch_size=12).train_dataloader()))
    first = batch.to(CPU)
    batch.packed = pin_memory(batch.packed)
    assert len(pinned) == 4
    assert all(map(torch.equal, first, batch.to(CPU)))


# --- what cannot be decoded --------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damage_is_listed_and_replaced_as_ever(folder: Path, num_workers: int) -> None:
    damaged = {"a/0.jpg": as_jpeg(photograph(48, 60))[:-300]}  # which its worker sees
    damaged["b/3.jpg"] = without_a_table(as_jpeg(photograph(50, 61)))  # which the device meets
    for name, data in damaged.items():
        write(folder / "train" / name, data)
    found, lists = [], []
    for decode in ("workers", "device"):
        data = open_data(folder, decode, num_workers=num_workers)
        found.append(joined([*epoch(data, 0), *epoch(data, 1)]))
        lists.append(listed(folder))
        assert data.report_skipped() == 2
    assert lists == [["0.jpg", "3.jpg"]] * 2
    assert (found[0].sample_index == -1).sum() == 4
    assert compare(*found).max() < 1.5


def test_files_broken_at_random_are_listed_as_by_workers(folder: Path) -> None:
    """Both decoders fill in for much of the damage, and give up at the same files."""
    generator = np.random.default_rng(0)
    for number in range(60):
        data = bytearray(as_jpeg(photograph(48, 60), progressive=number % 2 == 0))
        for place in generator.integers(data.index(b"\xff\xda") + 14, len(data) - 2, 20):
            data[place] = generator.integers(256)
        write(folder / f"train/a/broken{number}.jpg", bytes(data))
    lists = []
    for decode in ("workers", "device"):
        epoch(open_data(folder, decode, max_bad_fraction=1.0))
        lists.append(listed(folder))
    assert lists[0] == lists[1]
    assert 5 < len(lists[0]) < 55


def test_damage_that_the_device_meets_ends_a_run_that_is_to_be_strict(folder: Path) -> None:
    write(folder / "train/b/3.jpg", without_a_table(as_jpeg(photograph(50, 61))))
    with pytest.raises(UnreadableImageError, match=r"cannot read image .*train/b/3\.jpg"):
        epoch(open_data(folder, "device", on_error="raise"))


def test_too_much_damage_that_the_device_meets_ends_a_run(folder: Path) -> None:
    write(folder / "train/b/3.jpg", without_a_table(as_jpeg(photograph(50, 61))))
    with pytest.raises(UserError, match=r"more than data\.max_bad_fraction allows \(0\)"):
        epoch(open_data(folder, "device", max_bad_fraction=0.0))


def failing(error: Exception, bytes_of_file: int) -> Callable[..., Any]:
    """A decoder that fails at files of this size."""
    decode = torchvision.io.decode_jpeg

    def decode_others(files: Any, **options: Any) -> Any:
        if any(len(file) == bytes_of_file for file in files):
            raise error
        return decode(files, **options)

    return decode_others


def test_what_only_the_device_cannot_decode_is_decoded_as_workers_do_and_told_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    by_workers = joined(epoch(open_data(folder, "workers")))
    usual = compare(by_workers, joined(epoch(open_data(folder, "device"))))
    size = (folder / "train/a/2.jpg").stat().st_size
    broken = failing(RuntimeError("nvjpeg says 4\nand where"), size)
    monkeypatch.setattr(torchvision.io, "decode_jpeg", broken)
    data = open_data(folder, "device")
    again = compare(by_workers, joined([*epoch(data)]))
    names = [Path(data.train.identifier(int(index))).name for index in by_workers.sample_index]
    place = names.index("2.jpg")
    assert again[place] == 0
    assert usual[place] > 0
    usual[place] = 0
    assert torch.equal(again, usual)
    told = [message for message in caplog.messages if "2.jpg" in message]
    [message] = told
    assert message.endswith("train/a/2.jpg is decoded on the CPU (nvjpeg says 4)")
    assert listed(folder) == []


def test_a_device_that_has_no_memory_left_is_no_damaged_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (folder / "train/a/2.jpg").stat().st_size
    full = failing(torch.OutOfMemoryError("CUDA out of memory"), size)
    monkeypatch.setattr(torchvision.io, "decode_jpeg", full)
    with pytest.raises(torch.OutOfMemoryError):
        epoch(open_data(folder, "device"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streams_are_decoded_by_the_device_too(
    folder: Path, tmp_path: Path, num_workers: int
) -> None:
    write(folder / "train/b/3.jpg", without_a_table(as_jpeg(photograph(50, 61))))
    shards = pack(folder / "train", tmp_path / "shards", 3)
    found = []
    for decode in ("workers", "device"):
        data = webdataset(
            root=f"file://{shards}/{{000..003}}.tar",
            val_root=f"file://{shards}/000.tar",
            samples_per_epoch=12,
            shuffle_buffer=4,
            image_size=32,
            batch_size=4,
            num_workers=num_workers,
            train_transform=light_augmentation(32),
            decode=decode,
        )
        found.append(joined(epoch(data)))
    assert -1 in found[0].sample_index
    assert compare(*found).max() < 1.5


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"train_transform": strong_augmentation(32)},
            r"augmentation has RandAugment, NoiseErasing; use data\.decode=workers, or "
            r"augmentation\.rand_augment=null augmentation\.random_erasing=0",
        ),
        ({"train_transform": torch.nn.Identity()}, r"augmentation has Identity; use"),
        ({"mean": [0.5], "std": [0.5]}, "RGB and the data has 1 channels; use data.decode=workers"),
    ],
)
def test_what_needs_pixels_before_the_device_is_refused_before_data_is_read(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_data(tmp_path / "nowhere", "device", **options)


def test_another_decoder_is_refused_by_name() -> None:
    config = compose("pretrain", ["data=imagefolder", "data.decode=gpu"])
    with pytest.raises(UserError, match=r"data\.decode=gpu is unknown; use workers or device"):
        schema.check(config, find_stage("pretrain"))


def test_a_device_without_a_decoder_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise RuntimeError("torchvision not compiled with nvJPEG support")

    monkeypatch.setattr(torchvision.io, "decode_jpeg", missing)
    reason = (
        r"cpu cannot decode JPEG files \(torchvision not compiled .*\); use data.decode=workers"
    )
    with pytest.raises(UserError, match=reason):
        open_data(folder, "device").train_dataloader()


def test_a_torchvision_that_has_no_decoder_any_more_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torchvision.io, "decode_jpeg")
    with pytest.raises(UserError, match=r"torchvision .* has none; use data\.decode=workers"):
        open_data(folder, "device").train_dataloader()


def test_a_device_that_decodes_another_picture_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = torchvision.io.decode_jpeg
    monkeypatch.setattr(
        torchvision.io,
        "decode_jpeg",
        lambda files, **options: [image.flip(0) for image in decode(files, **options)],
    )
    with pytest.raises(UserError, match=r"a known picture is \d+ of 255 off"):
        open_data(folder, "device").train_dataloader()


def test_it_is_told_that_a_cpu_is_no_faster_device(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_data(folder, "device").train_dataloader()
    assert "on cpu the main process decodes JPEG files by itself" in caplog.text


# --- runs --------------------------------------------------------------------------------------


def options(folder: Path, *others: str) -> list[str]:
    data = ["data=imagefolder", f"data.root={folder}", "data.decode=device"]
    return [*TINY, *data, "trainer.log_every_n_steps=1", *others]


def test_a_run_goes_on_to_the_same_weights_and_not_with_another_decoder(
    folder: Path, tmp_path: Path
) -> None:
    given = options(folder, "trainer.max_steps=4", "save.every_n_steps=2", "save.keep=9")
    run_within(tmp_path / "whole", "pretrain", *given)
    start = f"resume={tmp_path / 'whole/checkpoints/step-00000002.ckpt'}"
    run_within(tmp_path / "resumed", "pretrain", *given, start, "data.num_workers=1")
    whole, resumed = (
        load_file(tmp_path / name / "encoder.safetensors") for name in ("whole", "resumed")
    )
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    with pytest.raises(UserError, match=r"data\.decode: device → workers"):
        run_within(tmp_path / "other", "pretrain", *given, start, "data.decode=workers")


def test_every_training_stage_has_the_option(folder: Path, tmp_path: Path) -> None:
    given = ["model=swinv2_nano", *options(folder, "trainer.max_steps=2")]
    with pytest.raises(UserError, match="augmentation has RandAugment, NoiseErasing"):
        run_within(tmp_path / "refused", "finetune", *given)
    given += ["augmentation.rand_augment=null", "augmentation.random_erasing=0"]
    assert run_within(tmp_path / "tuned", "finetune", *given)["steps"] == 2
    moved = [option for option in given if not option.startswith("model")]
    start = f"init.checkpoint={tmp_path / 'tuned'}"
    summary = run_within(tmp_path / "moved", "transfer", *moved, start, "model.image_size=64")
    assert summary["steps"] == 2
    assert summary["unreadable_images"] == 0
