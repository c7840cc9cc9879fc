"""Streams: equal steps for all ranks, places that a resumed run finds again, damage named."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from test_shards import png, write_tar

from simmim.data import webdataset
from simmim.data.dataset import SampleKey
from simmim.data.sources.shard_stream import ShardStream
from simmim.data.sources.streams import StreamedImages
from simmim.utils.errors import UserError

SHARDS, PER_SHARD = 8, 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight shards of eight images, image n of shade n, and one of held-out images."""
    for shard in range(SHARDS):
        numbers = range(shard * PER_SHARD, (shard + 1) * PER_SHARD)
        members = {}
        for number in numbers:
            members |= {f"{number:03}.png": png(number), f"{number:03}.cls": b"%d" % (number % 3)}
            members[f"{number:03}.pyd"] = b"\x80\x04evil"
        write_tar(tmp_path / f"{shard}.tar", members)
    write_tar(tmp_path / "val.tar", {f"v{n}.png": png(n) for n in range(5)})
    description = {"classes": list("abc"), "shards": {f"{n}.tar": PER_SHARD for n in range(SHARDS)}}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    return tmp_path


def open_stream(folder: Path, *, rank: int = 0, world_size: int = 1, **options):
    given = {
        "root": f"file://{folder}/{{0..7}}.tar",
        "val_root": f"pipe:cat {folder}/val.tar",
        "batch_size": 4,
        "num_workers": 0,
        "shuffle_buffer": 10,
        "seed": 1,
    } | options
    data = webdataset(image_size=4, train_transform=torch.nn.Identity(), **given)
    data._rank_and_world_size = lambda: {"rank": rank, "world_size": world_size}
    return data


def batches(data, *, epoch: int = 0, skipped: int = 0) -> list[list[int]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    loader.sampler.skip_batches(skipped)
    return [batch.image[:, 0, 0, 0].tolist() for batch in loader]


def test_two_ranks_of_two_workers_see_every_image_exactly_once_an_epoch(folder):
    seen = []
    for rank in (0, 1):
        mine = batches(open_stream(folder, rank=rank, world_size=2, num_workers=2))
        assert len(mine) == 8
        seen += [shade for batch in mine for shade in batch]
    assert sorted(seen) == list(range(64))


def test_an_epoch_is_a_function_of_seed_and_epoch(folder):
    first = batches(open_stream(folder))
    assert batches(open_stream(folder)) == first
    assert batches(open_stream(folder), epoch=1) != first
    assert batches(open_stream(folder, seed=2)) != first
    assert sorted(shade for batch in first for shade in batch) == list(range(64))


@pytest.mark.parametrize("num_workers", [0, 1, 4])
@pytest.mark.parametrize("skipped", [3, 8])
def test_an_epoch_goes_on_at_the_very_next_batch(folder, num_workers, skipped):
    options = {"num_workers": num_workers}
    whole = batches(open_stream(folder, **options), epoch=2)
    assert batches(open_stream(folder, **options), epoch=2, skipped=skipped) == whole[skipped:]


def test_workers_that_live_on_read_the_next_epoch(folder):
    loader = open_stream(folder, num_workers=2).train_dataloader()
    epochs = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        epochs.append([batch.image[:, 0, 0, 0].tolist() for batch in loader])
    for epoch, seen in enumerate(epochs):
        assert seen == batches(open_stream(folder, num_workers=2), epoch=epoch)


def test_a_worker_keeps_no_part_of_an_epoch_that_is_over(folder):
    """A resumed epoch gave it another part: each holds a shuffle buffer of images."""
    stream = ShardStream([f"file://{folder}/{n}.tar" for n in range(8)], 64, buffer=8, seed=0)
    left = []

    def read_part(epoch, part, parts):
        try:
            yield from ShardStream.read_part(stream, epoch, part, parts)
        finally:
            left.append((epoch, part))

    stream.read_part = read_part
    images = StreamedImages(stream, torch.nn.Identity(), 0, batch_size=4, lanes=2)
    images[SampleKey(0, 4)]
    assert left == []
    images[SampleKey(1, 0)]
    assert left == [(0, 1)]


def test_none_and_one_worker_read_alike(folder):
    assert batches(open_stream(folder)) == batches(open_stream(folder, num_workers=1))


def test_ranks_never_differ_in_steps_and_repeats_are_marked(folder):
    """Seven shards for two ranks: one has four, the other comes to its first again."""
    seen, steps = Counter(), []
    root = f"file://{folder}/{{0..6}}.tar"
    for rank in (0, 1):
        data = open_stream(folder, rank=rank, world_size=2, root=root, samples_per_epoch=64)
        loader = data.train_dataloader()
        steps.append(len(list(loader)))
        for batch in loader:
            counted = batch.sample_index >= 0
            seen.update(batch.image[counted, 0, 0, 0].tolist())
    assert steps == [8, 8]
    assert sorted(seen) == list(range(56))
    assert set(seen.values()) == {1}


def test_an_epoch_may_be_shorter_than_the_shards(folder):
    data = open_stream(folder, samples_per_epoch=20)
    assert len(data.train) == 20
    assert [len(batch) for batch in batches(data)] == [4] * 5
    assert data.steps_per_epoch(2, 1) == 2


def test_an_epoch_of_unknown_length_is_refused(folder):
    (folder / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"0.tar holds is not known; set data.samples_per_epoch=N"):
        open_stream(folder)
    (folder / "dataset.json").write_text(json.dumps({"shards": {"0.tar": 8}}))
    with pytest.raises(UserError, match=r"1.tar holds is not known"):
        open_stream(folder)


def test_with_fewer_shards_than_readers_each_keeps_its_share(folder):
    stream = ShardStream([f"file://{folder}/0.tar"], 8, buffer=4, seed=0)
    parts = [[image.name for image in stream.read_part(0, part, 3)] for part in range(3)]
    assert sorted(map(len, parts)) == [2, 3, 3]
    assert len({name for part in parts for name in part}) == 8


def test_labels_and_held_out_images_come_from_streams(folder):
    data = open_stream(folder)
    assert data.train.classes == data.val.classes == ("a", "b", "c")
    for batch in data.train_dataloader():
        assert batch.label.tolist() == (batch.image[:, 0, 0, 0] % 3).tolist()


@pytest.mark.parametrize("content", [b"-1\n", b""])
def test_an_image_whose_label_says_none_has_none(folder, content):
    """A shard in a folder of its own, so that a label could be taken for its name."""
    members = {"d/0.png": png(0), "d/0.cls": content, "d/1.png": png(1), "d/1.cls": b"b"}
    write_tar(folder / "0.tar", members)
    root = {"root": f"file://{folder}/0.tar", "samples_per_epoch": 2, "batch_size": 2}
    data = open_stream(folder, **root, shuffle_buffer=1)
    [batch] = data.train_dataloader()
    assert batch.label.tolist() == [-1, 1]
    on_disk = webdataset(
        root=str(folder / "0.tar"),
        image_size=4,
        train_transform=torch.nn.Identity(),
        batch_size=1,
        num_workers=0,
    )
    assert on_disk.train.classes == ()


def test_the_last_shards_are_held_out_where_no_others_are_named(folder):
    data = open_stream(folder, val_root=None, val_ratio=0.25, samples_per_epoch=48)
    held_out = [int(data.val.load(index)[0][0, 0, 0]) for index in range(len(data.val))]
    assert held_out == list(range(48, 64))
    assert sorted(shade for batch in batches(data) for shade in batch) == list(range(48))
    assert len(open_stream(folder, val_root=None, val_size=3).val) == 3
    assert open_stream(folder).val.identifier(0).endswith("val.tar/v0.png")


def test_a_truncated_shard_is_named_and_counted_and_the_epoch_keeps_its_length(folder, caplog):
    path = folder / "3.tar"
    path.write_bytes(path.read_bytes()[:3000])
    seen = [shade for batch in batches(open_stream(folder)) for shade in batch]
    assert len(seen) == 64
    assert set(seen) >= {*range(24), *range(32, 64)}
    assert f"skipped: the rest of file://{folder}/3.tar is damaged" in caplog.text
    assert "1 shards so far" in caplog.text
    with pytest.raises(UserError, match=r"3.tar is damaged .*use data.on_error=skip"):
        batches(open_stream(folder, on_error="raise"))


def test_a_command_that_fails_is_named(folder, caplog):
    root = [f"pipe:cat {folder}/0.tar", "pipe:cat /nowhere/1.tar"]
    seen = batches(open_stream(folder, root=root, samples_per_epoch=8))
    assert sorted(shade for batch in seen for shade in batch) == list(range(8))
    assert "/nowhere/1.tar is damaged or cannot be read" in caplog.text
    with pytest.raises(UserError, match=r"nowhere/1.tar is damaged or cannot be read"):
        batches(open_stream(folder, root=root, samples_per_epoch=8, on_error="raise"))


def test_an_unreadable_image_is_replaced_and_marked(folder, caplog):
    members = {f"{n}.png": png(n) for n in range(8)} | {"5.png": b"no image"}
    write_tar(folder / "0.tar", members)
    options = {"root": f"file://{folder}/0.tar", "shuffle_buffer": 1}
    [one, other] = open_stream(folder, **options, samples_per_epoch=8).train_dataloader()
    assert torch.cat([one.image, other.image])[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 6, 6, 7]
    assert torch.cat([one.sample_index, other.sample_index]).tolist() == [0, 1, 2, 3, 4, -1, 6, 7]
    assert caplog.text.count("5.png (it is no image") == 1
    with pytest.raises(UserError, match=r"5.png"):
        list(open_stream(folder, **options, on_error="raise").train_dataloader())


def test_streams_and_files_do_not_mix(folder):
    with pytest.raises(UserError, match="is streamed and other shards are on a disk"):
        open_stream(folder, val_root=f"{folder}/val.tar")


def test_what_chooses_images_says_that_a_stream_cannot(folder):
    with pytest.raises(UserError, match="streamed and cannot be chosen one by one"):
        open_stream(folder).require_random_access()


def test_excluding_a_whole_part_of_a_stream_ends(folder):
    """Its images come again and again, and none of them is ever tried."""
    stream = open_stream(folder, root=f"file://{folder}/0.tar", samples_per_epoch=8)
    names = {image.name for image in stream.train.read_part(0, 0, 1)}
    (folder / "list.jsonl").write_text("".join(f'{{"image": "{name}"}}\n' for name in names))
    options = {"root": f"file://{folder}/0.tar", "samples_per_epoch": 8}
    excluding = open_stream(folder, **options, exclude=str(folder / "list.jsonl"))
    with pytest.raises(UserError, match=r"all are in data\.exclude"):
        list(excluding.train_dataloader())
