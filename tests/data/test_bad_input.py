"""Images that cannot be read: named with the reason, replaced, listed once, and not too many."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from broken_images import BREAKINGS, encoded, huge_array, huge_png, huge_tiff, picture
from conftest import pack

from simmim.data import imagefolder
from simmim.data.dataset import SampleKey, TransformedImages
from simmim.data.decoding.decode import decode_image
from simmim.data.decoding.size_limits import Limits, limited
from simmim.data.sources.image_folder import find_images, open_folder
from simmim.data.sources.shards import ShardImages, Shards
from simmim.data.sources.tar_index import index_shard
from simmim.data.unreadable.policy import BadImagePolicy, Reading
from simmim.data.unreadable.retry import retry_transient_io, unreadable
from simmim.utils.errors import UnreadableImageError, UserError


def listed(path: Path) -> dict[str, str]:
    """Images and reasons of a list, in which each stands once."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({entry["image"] for entry in entries}) == len(entries)
    return {entry["image"]: entry["reason"] for entry in entries}


def open_data(root: Path, **options):
    given = {"root": root, "batch_size": 4, "num_workers": 0, "val_ratio": 0.2}
    given |= {"train_transform": torch.nn.Identity()} | options
    return imagefolder(image_size=8, **given)


@pytest.mark.parametrize("way", BREAKINGS)
def test_a_broken_image_is_named_with_its_reason_and_the_next_takes_its_place(tmp_path, way):
    broken, good = tmp_path / f"0.{BREAKINGS[way].suffix}", tmp_path / "1.png"
    BREAKINGS[way].write(broken)
    picture().save(good)
    tolerance = BadImagePolicy(value_type=torch.uint8)
    tolerance.skipped.path = tmp_path / "skipped.jsonl"
    images = TransformedImages(open_folder(tmp_path), torch.nn.Identity(), 0, tolerance)
    sample = images[SampleKey(3, 0)]
    assert sample.sample_index == -1
    assert torch.equal(sample.image, images[SampleKey(3, 1)].image)
    [(name, reason)] = listed(tolerance.skipped.path).items()
    assert name == str(broken)
    assert BREAKINGS[way].reason in reason
    assert '"epoch": 3' in tolerance.skipped.path.read_text()
    images.tolerance.on_error = "raise"
    with pytest.raises(
        UnreadableImageError, match=r"cannot read image .*0\..*; remove or replace it"
    ):
        images[SampleKey(0, 0)]


@pytest.mark.parametrize("bomb", [huge_png(), huge_tiff(), huge_array()])
def test_a_header_is_compared_with_the_limit_before_anything_is_allocated(bomb):
    with pytest.raises(UnreadableImageError, match=r"data\.max_pixels"):
        decode_image(bomb, "a")


def test_the_limits_are_the_user_s_and_hold_within_their_block_alone():
    image = encoded("PNG", picture(size=30))
    for limits, option in (
        (Limits(max_pixels=899), "data.max_pixels=899"),
        (Limits(min_side=31), "data.min_side=31"),
    ):
        with limited(limits), pytest.raises(UnreadableImageError, match=option):
            decode_image(image, "a")
    with limited(Limits(max_pixels=900, min_side=30)):
        assert decode_image(image, "a").shape == (3, 30, 30)
    assert decode_image(encoded("PNG", picture(size=1)), "a").shape == (3, 1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_pixels": 0}, "data.max_pixels 0 is not positive"),
        ({"max_aspect": 0.5}, "data.max_aspect 0.5 is less than 1"),
        ({"max_bad_fraction": 2.0}, r"data.max_bad_fraction 2.0 is not in \[0, 1\]"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Reading(**options)


def test_no_program_is_run_for_an_image(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(UserError, match="no image of a known format"):
        open_folder(tmp_path)


def test_two_types_of_values_are_not_put_into_one_batch(tmp_path):
    for number in range(20):
        picture(number, 8).save(tmp_path / f"{number:02}.png")
        if number % 2:
            np.save(tmp_path / f"{number:02}.npy", np.ones((3, 8, 8), np.float32))
    data = open_data(tmp_path, max_bad_fraction=0.05)
    reason = "its values are (float32|uint8) and those of other images (uint8|float32)"
    with pytest.raises(UserError, match=f"{reason}.*data.exclude"):
        list(data.train_dataloader())
    arrays = [json.dumps({"image": str(path)}) for path in tmp_path.glob("*.npy")]
    (tmp_path / "arrays.jsonl").write_text("\n".join(arrays))
    data = open_data(tmp_path, max_bad_fraction=0.0, exclude=str(tmp_path / "arrays.jsonl"))
    assert all(batch.image.dtype == torch.uint8 for batch in data.train_dataloader())


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_an_error_of_a_network_s_is_tried_again(monkeypatch, number):
    waited = []
    monkeypatch.setattr("simmim.data.unreadable.retry.time.sleep", waited.append)

    def read() -> str:
        if len(waited) < 2:
            raise unreadable("a", "it") from OSError(number, "away")
        return "content"

    assert retry_transient_io(read) == "content"
    assert waited == [0.2, 1.0]

    def fail() -> str:
        raise OSError(number, "away")

    with pytest.raises(OSError, match="away"):
        retry_transient_io(fail)
    assert len(waited) == 2 + 3


def test_other_errors_are_not_waited_for(monkeypatch):
    monkeypatch.setattr(
        "simmim.data.unreadable.retry.time.sleep", lambda _: pytest.fail("it waits")
    )

    def fail() -> None:
        raise unreadable("a", "gone") from FileNotFoundError(errno.ENOENT, "gone")

    with pytest.raises(UnreadableImageError):
        retry_transient_io(fail)


def test_a_shard_whose_handle_is_stale_is_opened_anew(tmp_path, monkeypatch):
    picture().save(tmp_path / "a.png")
    [path] = pack(tmp_path, tmp_path / "shards").iterdir()
    images = ShardImages(Shards([path], [index_shard(path)], ()))
    images.load(0)
    monkeypatch.setattr("simmim.data.unreadable.retry.time.sleep", lambda _: None)
    os.close(images._files[0])
    read, write = os.pipe()  # of the same number, which cannot be read at a place
    monkeypatch.setitem(images._files, 0, read)
    with pytest.raises(UnreadableImageError, match="Illegal seek"):
        images.load(0)
    assert images.load(0)[0].shape == (3, 40, 40)
    os.close(write)


def test_links_in_circles_and_folders_met_twice_are_named(tmp_path, caplog):
    (tmp_path / "a" / "b").mkdir(parents=True)
    picture().save(tmp_path / "a" / "b" / "1.png")
    (tmp_path / "a" / "b" / "up").symlink_to("..")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "z").symlink_to("a")
    assert list(find_images(tmp_path)) == ["a/b/1.png"]
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/self cannot be followed (Too many levels of symbolic links): left out",
        f"{tmp_path}/a/b/up is the folder {tmp_path}/a once more: left out",
        f"{tmp_path}/z is the folder {tmp_path}/a once more: left out",
    ]


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    picture().save(tmp_path / "b.png")
    assert list(find_images(tmp_path)) == ["b.png"]


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    picture().save(tmp_path / "b.png")
    whole = os.scandir

    def refuse(folder):
        if folder == tmp_path / "closed":
            raise PermissionError(errno.EACCES, "Permission denied")
        return whole(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"closed cannot be listed \(Permission denied\)"):
        list(find_images(tmp_path))
