"""`skipped.jsonl`: each unreadable image once, and lists of images to leave out."""

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from broken_images import write_folder
from conftest import pack

from simmim.data import imagefolder, webdataset
from simmim.data.unreadable.skipped_list import SkippedImages, read_names
from simmim.utils.errors import UserError


def listed(path: Path) -> dict[str, str]:
    """Images and reasons of a list, in which each stands once."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({entry["image"] for entry in entries}) == len(entries)
    return {entry["image"]: entry["reason"] for entry in entries}


def open_data(root: Path, **options):
    given = {"root": root, "batch_size": 4, "num_workers": 0, "val_ratio": 0.2}
    given |= {"train_transform": torch.nn.Identity()} | options
    return imagefolder(image_size=8, **given)


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
