"""Tar shards on a disk: every image once an epoch whoever reads, damage named and counted."""

import io
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simmim.data import ImageDataModule, webdataset
from simmim.data.samplers import shuffle_nearby
from simmim.data.sources.shard_urls import find_shards
from simmim.data.sources.shards import ShardImages, Shards, index_shards
from simmim.data.sources.tar_index import INDEX_FOLDER, scan_shard
from simmim.utils.errors import UserError

SHARDS, PER_SHARD = 10, 8


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, shade, shade)).save(file, "png")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Ten shards of eight images; image n is of shade n, its label n % 3."""
    for shard in range(SHARDS):
        numbers = range(shard * PER_SHARD, (shard + 1) * PER_SHARD)
        members = {}
        for number in numbers:
            members[f"{number:03}.png"] = png(number)
            members[f"{number:03}.cls"] = str(number % 3).encode()
        write_tar(tmp_path / "train" / f"{shard:02}.tar", members)
    held_out = {}
    for number in range(4):
        held_out |= {f"v{number}.png": png(number), f"v{number}.cls": b"0"}
    write_tar(tmp_path / "val" / "00.tar", held_out)
    return tmp_path / "train"


def open_data(
    root: Path | str, *, rank: int = 0, world_size: int = 1, **options
) -> ImageDataModule:
    """The data as one of several ranks sees it, without augmentation."""
    given = {"batch_size": 4, "num_workers": 0, "image_size": 4, "seed": 3} | options
    if "val_ratio" not in given:
        given.setdefault("val_root", str(Path(root).parent / "val"))
    data = webdataset(root=str(root), train_transform=torch.nn.Identity(), **given)
    data._rank_and_world_size = lambda: {"rank": rank, "world_size": world_size}
    return data


def batches(data: ImageDataModule, *, epoch: int = 0, skipped: int = 0) -> list[list[int]]:
    """The images of each batch of an epoch, by their shades."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    loader.sampler.skip_batches(skipped)
    return [batch.image[:, 0, 0, 0].tolist() for batch in loader]


def test_two_ranks_of_two_workers_see_every_image_exactly_once_an_epoch(shards):
    seen = []
    for rank in (0, 1):
        mine = batches(open_data(shards, rank=rank, world_size=2, num_workers=2))
        assert len(mine) == 10
        seen += [shade for batch in mine for shade in batch]
    assert sorted(seen) == list(range(SHARDS * PER_SHARD))


@pytest.mark.parametrize("num_workers", [1, 4])
def test_workers_and_ranks_change_no_global_batch(shards, num_workers):
    alone = batches(open_data(shards, batch_size=8))
    ranks = [
        batches(open_data(shards, rank=rank, world_size=2, num_workers=num_workers))
        for rank in (0, 1)
    ]
    assert [first + second for first, second in zip(*ranks, strict=True)] == alone


def test_an_epoch_is_a_function_of_seed_and_epoch(shards):
    first = batches(open_data(shards))
    assert batches(open_data(shards)) == first
    assert batches(open_data(shards), epoch=1) != first
    assert batches(open_data(shards, seed=4)) != first


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_an_epoch_goes_on_at_the_very_next_batch(shards, num_workers):
    whole = batches(open_data(shards), epoch=2)
    assert batches(open_data(shards, num_workers=num_workers), epoch=2, skipped=7) == whole[7:]


def test_images_are_shuffled_within_the_buffer_and_shards_as_a_whole():
    order = shuffle_nearby([50] * 20, 100, 0, 0)
    assert sorted(order.tolist()) == list(range(1000))
    # Seen in windows of the buffer and a shard, few shards are open.
    open_shards = [len(set((order[first : first + 50] // 50).tolist())) for first in range(950)]
    assert max(open_shards) <= 5
    assert min(open_shards[100:800]) >= 2
    assert shuffle_nearby([3, 0, 2], 1, 0, 0).tolist() in ([0, 1, 2, 3, 4], [3, 4, 0, 1, 2])


def test_labels_are_what_cls_files_say_or_the_folders_or_none(tmp_path):
    numbered = write_tar(tmp_path / "a" / "0.tar", {"1.png": png(1), "1.cls": b"2\n"})
    named = write_tar(tmp_path / "b" / "0.tar", {"dog/1.png": png(1), "cat/x/1.png": png(2)})
    mixed = write_tar(tmp_path / "c" / "0.tar", {"dog/1.png": png(1), "2.png": png(2)})
    labels = []
    for path in (numbered, named, mixed):
        data = webdataset(
            root=str(path), train_transform=None, image_size=4, batch_size=1, num_workers=0
        )
        labels.append((data.val.classes, [data.val.load(i)[1] for i in range(len(data.val))]))
    assert labels == [
        (("0", "1", "2"), [2]),
        (("cat", "dog"), [1, 0]),
        ((), [-1, -1]),
    ]


def test_dataset_json_names_numbered_classes(shards):
    (shards / "dataset.json").write_text('{"classes": ["ant", "bee", "cat"]}')
    data = open_data(shards, val_ratio=0.1)
    assert data.train.classes == data.val.classes == ("ant", "bee", "cat")
    assert data.require_classes() == ("ant", "bee", "cat")
    assert data.train.present_classes() == ("ant", "bee", "cat")
    (shards / "dataset.json").write_text('{"classes": ["ant"]}')
    with pytest.raises(UserError, match="names 1 classes and a label is 2"):
        open_data(shards)


def test_a_share_of_the_images_is_held_out_of_all_shards(shards, caplog):
    with caplog.at_level(logging.INFO):
        data = open_data(shards, val_ratio=0.25)
    assert "20 of 80 images are held out" in caplog.text
    held_out = {int(data.val.load(index)[0][0, 0, 0]) for index in range(len(data.val))}
    train = {int(data.train.load(index)[0][0, 0, 0]) for index in range(len(data.train))}
    assert len(held_out) == 20
    assert held_out | train == set(range(80))
    assert len({shade // PER_SHARD for shade in held_out}) >= 7
    # A shard that comes later moves few.
    write_tar(shards / "99.tar", {"1.png": png(200), "1.cls": b"0"})
    later = open_data(shards, val_ratio=0.25).val
    assert len(held_out - {int(later.load(i)[0][0, 0, 0]) for i in range(len(later))}) <= 1


def test_train_and_val_folders_are_taken_as_they_are(shards):
    data = open_data(shards.parent, val_root=None)
    assert (len(data.train), len(data.val)) == (80, 4)


def test_an_image_is_named_by_its_shard_and_name(shards):
    source = open_data(shards).train
    assert source.identifier(9) == f"{shards}/01.tar/009.png"


@pytest.mark.parametrize("cut", [700, 3000, 5119, 5120, 6144, 16384])
def test_a_truncated_shard_is_named_and_counted_and_its_whole_images_kept(shards, cut, caplog):
    path = shards / "03.tar"
    path.write_bytes(path.read_bytes()[:cut])
    kept = len(scan_shard(path))
    assert 0 <= kept < PER_SHARD
    data = open_data(shards)
    assert len(data.train) == 72 + kept
    assert f"skipped: the rest of {path} is damaged after {kept} images" in caplog.text
    assert "skipped: the rest of 1 of 11 shards" in caplog.text
    shades = [int(data.train.load(index)[0][0, 0, 0]) for index in range(len(data.train))]
    assert shades == [*range(24 + kept), *range(32, 80)]
    assert data.train.classes == ("0", "1", "2")
    with pytest.raises(UserError, match=r"03.tar is damaged after .*use data.on_error=skip"):
        open_data(shards, on_error="raise")


def test_padding_after_the_end_of_a_shard_is_no_part_of_it(shards):
    path = shards / "03.tar"
    path.write_bytes(path.read_bytes()[: 16384 + 512])
    assert len(open_data(shards, on_error="raise").train) == 80


def test_what_is_missing_is_counted_where_it_was_told(shards, caplog):
    (shards / "dataset.json").write_text('{"shards": {"03.tar": 8}}')
    (shards / "03.tar").write_bytes((shards / "03.tar").read_bytes()[:3500])
    open_data(shards)
    assert "after 1 of 8 images" in caplog.text


def test_garbage_in_place_of_a_shard_is_named(shards, caplog):
    (shards / "00.tar").write_bytes(b"no tar" * 400)
    (shards / "01.tar").write_bytes(b"")
    assert len(open_data(shards).train) == 64
    assert "2 of 11 shards" in caplog.text


def test_an_image_that_cannot_be_decoded_is_replaced_and_marked(tmp_path, caplog):
    members = {f"{n}.png": png(n) for n in range(4)} | {"1.png": b"no image"}
    write_tar(tmp_path / "train" / "0.tar", members)
    write_tar(tmp_path / "val" / "0.tar", {"0.png": png(0)})
    [batch] = open_data(tmp_path / "train").train_dataloader()
    assert sorted(batch.sample_index.tolist()) == [-1, 0, 2, 3]
    assert "0.tar/1.png (it is no image of a known format)" in caplog.text
    with pytest.raises(UserError, match=r"0.tar/1.png"):
        list(open_data(tmp_path / "train", on_error="raise").train_dataloader())


def test_the_index_is_kept_and_made_anew_when_the_shard_changes(shards):
    path = shards / "00.tar"
    assert len(open_data(shards).train) == 80
    kept = shards / INDEX_FOLDER / "00.tar.npz"
    before = kept.stat().st_mtime_ns
    open_data(shards)
    assert kept.stat().st_mtime_ns == before
    write_tar(path, {f"{n}.png": png(n) for n in range(3)})
    assert len(open_data(shards).train) == 75
    kept.write_bytes(kept.read_bytes()[:50])
    assert len(open_data(shards).train) == 75


def test_a_shard_that_became_shorter_during_a_run_is_no_image(shards):
    source = open_data(shards).train
    (shards / "00.tar").write_bytes(b"")
    with pytest.raises(UserError, match="has become shorter"):
        source.load(0)


def test_members_that_are_no_images_are_passed_over(tmp_path):
    path = write_tar(
        tmp_path / "0.tar",
        {
            "1.pyd": b"\x80\x04evil",
            "1.png": png(7),
            "1.json": b"{}",
            "2.txt": b"no image here",
            "._1.png": b"a resource fork",
            "dir/3.seg.png": png(9),
        },
    )
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("4.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    index = scan_shard(path)
    assert index.names.tolist() == [b"1.png", b"dir/3.seg.png"]
    assert index.damage == ""


def test_compressed_shards_are_refused_with_the_way_out(tmp_path):
    import gzip

    path = write_tar(tmp_path / "0.tar", {"1.png": png(1)})
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match=r"is compressed .* data.root='pipe:zcat"):
        index_shards([path], "skip")


def test_patterns_are_folders_globs_braces_and_lists(shards):
    everything = [f"{shards}/{number:02}.tar" for number in range(10)]
    assert find_shards(str(shards)) == everything
    assert find_shards(f"{shards}/0?.tar") == everything
    assert find_shards(f"{shards}/{{00..09}}.tar") == everything
    assert find_shards([f"{shards}/0[0-4].tar", f"{shards}/0[5-9].tar"]) == everything
    assert find_shards("https://host/{0..2}.tar") == [f"https://host/{n}.tar" for n in range(3)]
    assert find_shards("pipe:cat a?.tar") == ["pipe:cat a?.tar"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none/*.tar", r"data.root .*none/\*.tar matches no shard"),
        ("train/{08..13}.tar", r"4 of 6 shards do not exist \(.*10.tar, .*13.tar\)"),
        ("train/{00..99}.tar", r"90 of 100 shards do not exist \(.*14.tar, …\)"),
        ("none/{0..3}.tar", "matches no shard"),
        ("none", "matches no shard"),
    ],
)
def test_what_does_not_exist_is_named(shards, pattern, message):
    with pytest.raises(UserError, match=message):
        find_shards(f"{shards.parent}/{pattern}")


def test_a_shard_named_twice_is_refused(shards):
    with pytest.raises(UserError, match="names 10 shards more than once"):
        find_shards([str(shards), f"{shards}/*.tar"])


def test_no_root_and_shards_without_images_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"set data\.root="):
        webdataset(root=None, image_size=4, batch_size=1, train_transform=None)
    write_tar(tmp_path / "0.tar", {"1.txt": b"text"})
    with pytest.raises(UserError, match="hold no image"):
        open_data(tmp_path, val_ratio=0.5)


def test_workers_that_are_started_anew_open_the_shards_themselves(shards):
    """As where processes are spawned: what is sent to them holds no open file."""
    import pickle

    source = open_data(shards).train
    source.load(0)
    image, label = pickle.loads(pickle.dumps(source)).load(17)
    assert (int(image[0, 0, 0]), label) == (17, -1 if not source.classes else 17 % 3)


def test_many_shards_do_not_exhaust_the_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr("simmim.data.sources.shards._MOST_OPEN_FILES", 3)
    paths = [write_tar(tmp_path / f"{n}.tar", {"1.png": png(n)}) for n in range(6)]
    source = ShardImages(Shards(paths, index_shards(paths, "raise"), ()))
    for turn in range(2):
        shades = [int(source.load(index)[0][0, 0, 0]) for index in range(6)]
        assert shades == list(range(6)), turn
    assert len(source._files) == 3


def test_arrays_of_many_bands_come_from_shards(tmp_path):
    values = np.arange(5 * 4 * 4, dtype=np.int16).reshape(5, 4, 4)
    file = io.BytesIO()
    np.save(file, values)
    path = write_tar(tmp_path / "0.tar", {"1.npy": file.getvalue()})
    source = ShardImages(Shards([path], index_shards([path], "raise"), ()), channels=5)
    np.testing.assert_array_equal(source.load(0)[0].numpy(), values.astype(np.float32))


def listed(path: Path, **options) -> list[str]:
    """Names of the images that are read of a shard."""
    data = webdataset(
        root=str(path), image_size=4, batch_size=1, num_workers=0, train_transform=None, **options
    )
    return [data.val.identifier(index).split(".tar/")[1] for index in range(len(data.val))]


SAMPLES = {
    # As photographs are called: the names have dots, and no image is lost.
    "dots": (
        [f"{folder}/shot.2024.{number:02}.jpg" for folder in "ab" for number in range(3)],
        [f"{folder}/shot.2024.{number:02}.jpg" for folder in "ab" for number in range(3)],
    ),
    "words": (["paris.eiffel.jpg", "paris.louvre.jpg"], ["paris.eiffel.jpg", "paris.louvre.jpg"]),
    "map first": (["0.depth.png", "0.jpg", "1.depth.png", "1.jpg"], ["0.jpg", "1.jpg"]),
    "mask after": (["0.jpg", "0.seg.png", "1.jpg", "1.png"], ["0.jpg", "1.jpg"]),
    "mask first": (["0.png", "0.jpg"], ["0.jpg"]),
    "parts alone": (["0.mask_1.png", "0.rgb.png", "0.depth16.tiff"], ["0.rgb.png"]),
    "views": (["0.left.jpg", "0.right.jpg", "0.depth.png"], ["0.left.jpg", "0.right.jpg"]),
    "numbered": (["0.0.jpg", "0.1.jpg"], ["0.0.jpg", "0.1.jpg"]),
    "a map alone": (["0.seg.png"], ["0.seg.png"]),
    "a mac's": (["__MACOSX/0.jpg", "._0.jpg", "./0.jpg"], ["./0.jpg"]),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_no_image_is_lost_and_no_map_is_taken_for_one(tmp_path, kind):
    names, expected = SAMPLES[kind]
    path = write_tar(tmp_path / "0.tar", dict.fromkeys(names, png(7)))
    assert listed(path) == expected
    # And the same of a stream.
    assert listed(f"file://{path}") == expected


def test_what_is_left_out_of_samples_is_said_and_may_be_chosen(tmp_path, caplog):
    members = {f"{n}.{end}": png(n) for n in range(3) for end in ("depth.png", "jpg")}
    path = write_tar(tmp_path / "0.tar", members)
    with caplog.at_level(logging.INFO):
        for root in (str(path), f"file://{path}"):
            caplog.clear()
            assert listed(root) == ["0.jpg", "1.jpg", "2.jpg"]
            assert caplog.text.count("those that end in depth.png are left out") == 1
            assert listed(root, image_key="depth.png") == [f"{n}.depth.png" for n in range(3)]
            assert listed(root, image_key=["*.png", "jpg"]) == [f"{n}.depth.png" for n in range(3)]
            assert listed(root, image_key="webp;JPG") == ["0.jpg", "1.jpg", "2.jpg"]
    with pytest.raises(
        UserError, match=r"no image that data\.image_key chooses; they have depth\.png, jpg"
    ):
        listed(path, image_key="webp")
    with pytest.raises(UserError, match=r"data\.image_key= names no ending"):
        listed(path, image_key="")


def test_each_image_of_a_sample_has_its_label(tmp_path):
    names = ["0.left.jpg", "0.right.jpg", "0.cls", "1.0.jpg", "1.1.jpg", "1.cls"]
    names += ["my.dog.jpg", "my.dog.cls", "shot.2024.1.cls", "shot.2024.1.jpg", "shot.2024.2.jpg"]
    labels = {"0.cls": b"3", "1.cls": b"4", "my.dog.cls": b"5", "shot.2024.1.cls": b"6"}
    path = write_tar(tmp_path / "0.tar", {name: labels.get(name, png(1)) for name in names})
    index = scan_shard(path)
    assert index.labels.tolist() == [b"3", b"3", b"4", b"4", b"5", b"6", b""]


def test_names_of_shards_tell_the_parts(tmp_path):
    for part, count in (("train", 3), ("validation", 2), ("test", 1)):
        for number in range(count):
            write_tar(tmp_path / f"cats-{part}-{number:04}.tar", {f"{number}.png": png(1)})
            write_tar(tmp_path / "in" / part.title() / f"{number}.tar", {f"{number}.png": png(1)})
    (tmp_path / "._cats-train-0000.tar").write_bytes(b"a resource fork")
    for root in (tmp_path, tmp_path / "in"):
        data = open_data(root, val_root=None)
        assert (len(data.train), len(data.val)) == (3, 2)


def test_labels_that_mean_other_classes_held_out_are_refused(shards):
    (shards / "dataset.json").write_text('{"classes": ["ant", "bee", "cat"]}')
    (shards.parent / "val" / "dataset.json").write_text('{"classes": ["bee", "cat", "dog"]}')
    with pytest.raises(UserError, match="name different classes"):
        open_data(shards)
