"""Images that cannot be read: named with the reason, replaced, listed once, and not too many."""

import errno
import io
import json
import os
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from broken_images import BREAKINGS, encoded, huge_array, huge_png, huge_tiff, picture, write_folder
from conftest import pack

from simmim.data import imagefolder, webdataset
from simmim.data.dataset import SampleKey, TransformedImages
from simmim.data.decoding.decode import decode_image
from simmim.data.decoding.size_limits import Limits, limited
from simmim.data.sources.image_folder import find_images, open_folder
from simmim.data.sources.shards import ShardImages, Shards
from simmim.data.sources.tar_index import INDEX_FOLDER, index_shard, scan_shard
from simmim.data.unreadable.policy import BadImagePolicy, Reading
from simmim.data.unreadable.retry import retry_transient_io, unreadable
from simmim.data.unreadable.skipped_list import SkippedImages, read_names
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


# --- the list ----------------------------------------------------------------------------------


def note_all(path: Path) -> None:
    skipped = SkippedImages(most=1000, of=1000, path=path)
    for number in range(60):
        skipped.note(f"image {number}", "broken", 0)


def test_processes_that_meet_the_same_images_list_each_once(tmp_path):
    path = tmp_path / "skipped.jsonl"
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(note_all, [path] * 8))
    assert len(listed(path)) == 60
    assert SkippedImages(1000, 1000, path=path).count() == 60


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path):
    path = tmp_path / "skipped.jsonl"
    path.write_text('{"image": "a", "reason": ""}\n{"image": "b", "rea')
    skipped = SkippedImages(10, 10, path=path)
    skipped.note("a", "broken", 0)
    skipped.note("c", "broken", 0)
    assert skipped.count() == 2
    assert path.read_text().splitlines()[2] == '{"image": "c", "reason": "broken", "epoch": 0}'


def test_too_many_stop_the_run_also_when_it_is_started_again(tmp_path):
    path = tmp_path / "skipped.jsonl"
    skipped = SkippedImages(2, 30, path=path)
    skipped.note("a", "broken", 0)
    skipped.note("b", "broken", 0)
    message = (
        r"3 of 30 images could not be read, .*data.max_bad_fraction.*skipped.jsonl.*data.exclude"
    )
    with pytest.raises(UserError, match=message):
        skipped.note("c", "broken", 0)
    with pytest.raises(UserError, match="3 of 30 images"):
        SkippedImages(2, 30, path=path).note("a", "broken", 1)
    SkippedImages(2, 30, path=path, excluded={"b"}).note("a", "broken", 1)


def test_a_list_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    skipped = SkippedImages(5, 5, path=tmp_path / "none" / "skipped.jsonl")
    skipped.note("a", "broken", 0)
    assert skipped.count() == 1
    assert "cannot be written" in caplog.text


def test_a_run_that_excludes_a_list_sees_the_same_images_as_the_one_that_wrote_it(tmp_path):
    reasons = write_folder(tmp_path / "images", 40, 12)
    data = open_data(tmp_path / "images", max_bad_fraction=0.5)
    data.list_skipped(tmp_path, goes_on=False)
    # Images of one size, or they would make no batch.
    batches = [batch.image for batch in data.train_dataloader()]
    list(data.val_dataloader())
    assert data.report_skipped() == 12
    found = listed(tmp_path / "skipped.jsonl")
    assert found.keys() == reasons.keys()
    assert all(part in found[name] for name, part in reasons.items())
    again = open_data(
        tmp_path / "images", max_bad_fraction=0.0, exclude=str(tmp_path / "skipped.jsonl")
    )
    for before, after in zip(batches, again.train_dataloader(), strict=True):
        assert torch.equal(before, after.image)
    assert again.report_skipped() == 0


def test_a_list_serves_wherever_a_command_is_started(tmp_path, monkeypatch):
    write_folder(tmp_path / "images", 20, 4)
    monkeypatch.chdir(tmp_path)
    data = open_data(Path("images"))
    assert data.train.identifier(0).startswith(f"{tmp_path}/images/")
    shards = pack(tmp_path / "images", tmp_path / "shards")
    data = webdataset(
        root="shards",
        image_size=4,
        train_transform=torch.nn.Identity(),
        batch_size=4,
        num_workers=0,
    )
    assert data.train.identifier(0).startswith(f"{shards}/000.tar/")


def test_a_list_of_other_images_is_told(tmp_path, caplog):
    """As one that was made where the data lay before."""
    write_folder(tmp_path / "images", 20, 4)
    path = tmp_path / "bad.jsonl"
    path.write_text('{"image": "/before/03.png"}\n{"image": "/before/07.png"}\n')
    message = (
        rf"^data\.exclude={path} excludes nothing: of its 2 names, as /before/03.png, none is "
        rf"among the data's, as {tmp_path}/images/.*simmim\.check"
    )
    with pytest.raises(UserError, match=message):
        open_data(tmp_path / "images", exclude=str(path))
    # What is not trained on may have none of a list of training images.
    open_data(tmp_path / "images", exclude=str(path), train_transform=None)
    assert f"data.exclude={path} excludes nothing" in caplog.text
    path.write_text("")
    open_data(tmp_path / "images", exclude=str(path))


def test_a_list_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data.exclude=.* cannot be read"):
        read_names(tmp_path / "none")
    (tmp_path / "list").write_text('{"image": "a"}\n["b"]\n')
    with pytest.raises(UserError, match=r"line 2 of data.exclude="):
        read_names(tmp_path / "list")


# --- files that vanish, file systems that err, links ---------------------------------------------


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


# --- shards that are not to be trusted -----------------------------------------------------------


def write_shard(path: Path, spoil=None, **members: bytes) -> Path:
    """A shard of members `name.png`, the second of which is spoiled."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"{name}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    if spoil is not None:
        content = bytearray(path.read_bytes())
        spoil(content)
        path.write_bytes(content)
    return path


def header(content: bytearray, at: int, *, size: bytes | None = None, kind: bytes | None = None):
    """Writes fields of a tar header, and its checksum."""
    if size is not None:
        content[at + 124 : at + 136] = size
    if kind is not None:
        content[at + 156 : at + 157] = kind
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])


@pytest.mark.parametrize(
    ("size", "kind"),
    [
        (b"77777777777\0", None),  # 8 GiB
        (b"\xff" * 12, None),  # -1
        (b"\x80" + b"\xff" * 11, None),
        (b"77777777777\0", b"L"),
        (b"00010000000\0", b"x"),
        (b"00010000000\0", b"g"),
        (None, b"S"),
    ],
)
def test_no_size_of_a_tar_header_is_believed(tmp_path, size, kind):
    image = encoded("PNG", picture(size=10))
    third = 2 * (512 + -(-len(image) // 512) * 512)
    path = write_shard(
        tmp_path / "a.tar",
        lambda content: header(content, third, size=size, kind=kind),
        **{"0": image, "1": image, "2": image},
    )
    index = scan_shard(path)
    assert index.damage
    # The second may lack a part.
    assert 1 <= len(index) <= 2
    assert (index.offsets + index.sizes <= path.stat().st_size).all()
    data = webdataset(
        root=f"file://{path}",
        val_root=f"file://{path}",
        image_size=4,
        train_transform=torch.nn.Identity(),
        batch_size=1,
        num_workers=0,
        samples_per_epoch=1,
    )
    assert 1 <= len(data.val) <= 2


def test_a_name_is_nowhere_to_write_to_and_not_of_any_length(tmp_path):
    image = encoded("PNG", picture(size=10))
    folder = tmp_path / "shards"
    folder.mkdir()
    write_shard(folder / "a.tar", **{"../../evil": image, "/tmp/evil": image, "n" * 900: image})
    assert len(scan_shard(folder / "a.tar")) == 3
    images = ShardImages(Shards([folder / "a.tar"], [index_shard(folder / "a.tar")], ()))
    assert all(images.load(number)[0].shape == (3, 10, 10) for number in range(3))
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        *(INDEX_FOLDER, "a.tar", "a.tar.npz", "shards"),
    ]
    write_shard(folder / "b.tar", **{"0": image, "n" * 5000: image})
    assert "a name of 5004 characters" in scan_shard(folder / "b.tar").damage


def test_headers_of_headers_without_end_are_damage(tmp_path):
    def chain(content: bytearray) -> None:
        start = bytes(content[:512])
        many = bytearray(start * 5000)
        for at in range(0, len(many), 512):
            header(many, at, size=b"00000000000\0", kind=b"L")
        content[:0] = many

    path = write_shard(tmp_path / "a.tar", chain, **{"0": encoded("PNG")})
    assert "recursion" in scan_shard(path).damage


@pytest.mark.parametrize(
    "forged",
    [
        {"sizes": np.array([2**62])},
        {"offsets": np.array([-5])},
        {"offsets": np.array([0, 512])},
        {"names": np.zeros(1, "S50000000")},
        {"sizes": np.array([5.0])},
    ],
)
def test_an_index_that_cannot_be_of_its_shard_is_made_anew(tmp_path, forged):
    path = write_shard(tmp_path / "a.tar", **{"0": encoded("PNG")})
    whole = index_shard(path)
    kept = tmp_path / INDEX_FOLDER / "a.tar.npz"
    with np.load(kept) as file:
        columns = dict(file)
    np.savez_compressed(kept, **columns | forged)
    index = index_shard(path)
    assert index.sizes.tolist() == whole.sizes.tolist()
    assert index.offsets.tolist() == whole.offsets.tolist()
    assert index.names.tolist() == whole.names.tolist()
