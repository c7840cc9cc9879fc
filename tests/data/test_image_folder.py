"""Folders of images: what is found, how it is labelled, and what is refused."""

import os
import re
from pathlib import Path

import pytest
from image_folders import add, open_data, refusal

from simmim.data.sources.image_folder import find_images, open_folder, split_folder
from simmim.utils.errors import UserError


def test_images_are_found_at_any_depth_in_the_order_of_their_paths(tmp_path: Path) -> None:
    add(tmp_path, "b/2.png", "b/10.png", "a/deep/er/1.jpg", "a/0.png")
    folder = open_folder(tmp_path)
    assert folder.paths == ["a/0.png", "a/deep/er/1.jpg", "b/10.png", "b/2.png"]
    assert [folder.identifier(index) for index in range(4)] == [
        f"{tmp_path}/{path}" for path in folder.paths
    ]


def test_labels_are_the_first_folder_where_every_image_lies_in_one(tmp_path: Path) -> None:
    add(tmp_path, "dog/1.png", "cat/left/1.png", "cat/2.png")
    folder = open_folder(tmp_path)
    assert folder.classes == ("cat", "dog")
    assert [folder.load(index)[1] for index in range(3)] == [0, 0, 1]


def test_an_image_beside_the_class_folders_has_no_label_and_is_named_or_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(tmp_path, "dog/1.png", "dog/2.png", "cat/1.png", "cat/2.png", "stray.png")
    folder = open_folder(tmp_path)
    assert folder.classes == ("cat", "dog")
    assert [folder.load(index)[1] for index in range(5)] == [0, 0, 1, 1, -1]
    data = open_data(tmp_path, val_ratio=0.2)
    with pytest.raises(UserError, match=r"lie in no class folder.*stray\.png"):
        data.require_classes()
    data.keep_labelled()
    assert "stray.png" in caplog.text
    assert data.require_classes() == ("cat", "dog")
    assert len(data.train) + len(data.val) == 4


def test_images_that_lie_beside_one_folder_have_no_labels(tmp_path: Path) -> None:
    add(tmp_path, "1.png", "2.png", "3.png", "more/4.png")
    assert open_folder(tmp_path).classes == ()
    with pytest.raises(
        UserError, match=r"0 classes \(.*/[123]\.png and \d more lie in no folder\)"
    ):
        open_data(tmp_path).require_classes()


def test_an_index_loads_the_image_that_it_names(tmp_path: Path) -> None:
    for number in range(4):
        add(tmp_path, f"{number}.png", shade=10 * number)
    folder = open_folder(tmp_path)
    for index in range(4):
        image, label = folder.load(index)
        assert image.shape == (3, 3, 2)
        assert (image == 10 * int(Path(folder.identifier(index)).stem)).all()
        assert label == -1


def test_hidden_files_and_folders_and_other_kinds_of_files_are_passed_over(tmp_path: Path) -> None:
    add(tmp_path, "a.png", ".hidden.png", ".ipynb_checkpoints/a.png", "sub/.thumbs/b.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "png").write_text("no suffix")
    assert list(find_images(tmp_path)) == ["a.png"]


def test_a_hidden_folder_may_be_the_root(tmp_path: Path) -> None:
    assert open_folder(add(tmp_path / ".data", "a.png")).paths == ["a.png"]


def test_the_case_of_a_suffix_does_not_matter(tmp_path: Path) -> None:
    add(tmp_path, "a.PNG", "b.Jpg", "c.jpeg", "d.TIFF")
    assert sorted(find_images(tmp_path)) == ["a.PNG", "b.Jpg", "c.jpeg", "d.TIFF"]


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    root, elsewhere = add(tmp_path / "root", "1.png"), add(tmp_path / "elsewhere", "2.png")
    (root / "linked").symlink_to(elsewhere)
    (root / "3.png").symlink_to(elsewhere / "2.png")
    assert sorted(find_images(root)) == ["1.png", "3.png", "linked/2.png"]


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_circles_of_links_are_not_followed(tmp_path: Path, target: str) -> None:
    add(tmp_path, "a/1.png", "a/b/2.png")
    (tmp_path / "a" / "b" / "circle").symlink_to(target)
    assert sorted(find_images(tmp_path)) == ["a/1.png", "a/b/2.png"]


@pytest.mark.skipif(os.name != "posix", reason="names of any bytes are a thing of POSIX")
def test_names_that_are_not_utf_8_are_read_and_split_like_others(tmp_path: Path) -> None:
    add(tmp_path, "a.png", "b.png")
    try:
        (tmp_path / "a.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    train, val = split_folder(tmp_path, 0.5)
    assert sorted([*train.paths, *val.paths]) == ["b.png", os.fsdecode(b"\xff.png")]
    assert train.load(0)[0].shape == val.load(0)[0].shape == (3, 3, 2)


@pytest.mark.parametrize("mark", [".hydra/resolved.yaml", "checkpoints/last.ckpt"])
def test_what_runs_wrote_is_no_data(
    tmp_path: Path, mark: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As where data.root is the working directory, and runs write below it."""
    add(tmp_path, "a.png", "b/c.png")
    for number in range(2):
        run = add(tmp_path / "outputs" / f"{number}", "reconstructions/step-1.png", "grid.png")
        (run / mark).parent.mkdir()
        (run / mark).touch()
    with caplog.at_level("INFO"):
        assert list(find_images(tmp_path)) == ["a.png", "b/c.png"]
    assert caplog.text.count("2 run directories") == 1
    # Data in the very folder that a run writes to.
    add(tmp_path / "outputs" / "0", "mine/1.png")
    assert list(find_images(tmp_path / "outputs" / "0")) == ["grid.png", "mine/1.png"]
    assert list(find_images(tmp_path / "outputs" / "0" / "reconstructions")) == ["step-1.png"]


def test_a_mac_s_archives_leave_no_images(tmp_path: Path) -> None:
    add(tmp_path, "a.png", "__MACOSX/._a.png", "__MACOSX/b.png", "._a.png")
    assert list(find_images(tmp_path)) == ["a.png"]


def test_a_home_folder_may_be_named_by_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    add(tmp_path / "images", "a.png", "b.png")
    assert split_folder("~/images", 0.5).train.root == tmp_path / "images"


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == (
        f"data.root {tmp_path}/none does not exist; set data.root to a folder of images"
    )


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    add(tmp_path, "a.png")
    assert refusal(tmp_path / "a.png") == (
        f"data.root {tmp_path}/a.png is not a folder; set data.root to a folder of images"
    )


def test_a_folder_without_an_image_is_refused_with_the_kinds_that_count(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    assert refusal(tmp_path) == (
        f"{tmp_path} holds no image (avif, bmp, dib, gif, j2k, jfif, jp2, jpe, jpeg, jpg, npy, pgm, "
        "png, ppm, tif, tiff, webp); set data.root to a folder of images"
    )


def test_a_folder_of_unreadable_files_is_refused_with_the_first_one_s_reason(
    tmp_path: Path,
) -> None:
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_text("no picture")
    message = refusal(tmp_path)
    start = f"{tmp_path} holds no readable image among 2 files: cannot read image {tmp_path}/a.png"
    assert message.startswith(start)
    assert "b.jpg" not in message


def test_an_unreadable_file_among_readable_ones_is_refused_only_when_it_is_loaded(
    tmp_path: Path,
) -> None:
    add(tmp_path, "b.png")
    (tmp_path / "a.png").write_text("no picture")
    folder = open_folder(tmp_path)
    assert folder.load(1)[0].shape == (3, 3, 2)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/a.png")):
        folder.load(0)
