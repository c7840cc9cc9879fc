"""Folders of images: what is found, how it is labelled and split, and every refusal."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simmim.data import ImageDataModule, imagefolder
from simmim.data.sources.image_folder import find_images, held_out_folder, open_folder, split_folder
from simmim.utils.errors import UserError


def add(root: Path, *paths: str, shade: int = 0) -> Path:
    """Writes small images below a folder."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 3), shade).save(root / path)
    return root


def open_data(root: Path, val_ratio: float = 0.5, **options: str) -> ImageDataModule:
    return imagefolder(
        root=root,
        image_size=4,
        batch_size=1,
        train_transform=torch.nn.Identity(),
        val_ratio=val_ratio,
        num_workers=0,
        **options,
    )


def refusal(root: str | Path, val_ratio: float = 0.5) -> str:
    with pytest.raises(UserError) as caught:
        split_folder(root, val_ratio)
    return str(caught.value)


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


def test_train_and_val_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    add(tmp_path, "train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png")
    train, val = split_folder(tmp_path, 0.9)
    assert train.paths == ["cat/1.png", "dog/2.png"]
    assert val.paths == ["cat/3.png", "dog/4.png"]
    assert train.classes == val.classes == ("cat", "dog")
    assert [val.load(index)[1] for index in (0, 1)] == [0, 1]


def test_labels_mean_the_same_in_both_where_one_lacks_a_class(tmp_path: Path) -> None:
    add(tmp_path, "train/ant/1.png", "train/cat/1.png", "train/dog/1.png")
    add(tmp_path, "val/bee/1.png", "val/dog/1.png")
    train, val = split_folder(tmp_path, 0.5)
    assert train.classes == val.classes == ("ant", "bee", "cat", "dog")
    assert [train.load(index)[1] for index in range(3)] == [0, 2, 3]
    assert [val.load(index)[1] for index in range(2)] == [1, 3]


def test_a_part_knows_which_of_the_classes_it_has(tmp_path: Path) -> None:
    add(tmp_path, "train/ant/1.png", "train/cat/1.png", "val/bee/1.png", "val/cat/deep/1.png")
    train, val = split_folder(tmp_path, 0.5)
    assert train.present_classes() == ("ant", "cat")
    assert val.present_classes() == ("bee", "cat")
    assert open_folder(add(tmp_path / "loose", "1.png")).present_classes() == ()


def test_there_are_no_labels_where_one_part_has_none(tmp_path: Path) -> None:
    add(tmp_path, "train/ant/1.png", "train/cat/1.png", "val/1.png")
    train, val = split_folder(tmp_path, 0.5)
    assert train.classes == val.classes == ()
    assert train.load(0)[1] == val.load(0)[1] == -1


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("Train", "Val"),
        ("TRAIN", "TEST"),
        ("training", "testing"),
        ("trn", "dev"),
        ("training_set", "test_set"),
        ("train2017", "val2017"),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val"),
        ("trainImages", "validImages"),
    ],
)
@pytest.mark.parametrize("wrapper", ["", "images", "ILSVRC/Data/CLS-LOC"])
def test_parts_are_known_in_any_spelling_and_depth(
    tmp_path: Path, train: str, held_out: str, wrapper: str
) -> None:
    folder = tmp_path / wrapper
    add(folder, *(f"{train}/{name}/{number}.png" for name in "ab" for number in (1, 2)))
    add(folder, f"{held_out}/a/3.png", f"{held_out}/b/4.png")
    if wrapper:  # as ADE20K's, whose annotations are pictures
        beside = tmp_path / "ILSVRC" if "ILSVRC" in wrapper else tmp_path
        add(beside, "annotations/training/1.png", "annotations/validation/1.png")
    data = open_data(tmp_path)
    assert data.require_classes() == ("a", "b")
    assert (data.train.paths, data.val.paths) == (
        ["a/1.png", "a/2.png", "b/1.png", "b/2.png"],
        ["a/3.png", "b/4.png"],
    )
    assert held_out_folder(tmp_path).paths == ["a/3.png", "b/4.png"]


@pytest.mark.parametrize("name", ["test", "training", "val", "train"])
def test_a_class_may_be_called_as_a_part_is(tmp_path: Path, name: str) -> None:
    names = sorted([*(f"class{number}" for number in range(10)), name])
    add(tmp_path, *(f"{one}/{number}.png" for one in names for number in range(3)))
    assert open_data(tmp_path).train.classes == tuple(names)
    assert held_out_folder(tmp_path).classes == tuple(names)


def test_parts_that_are_not_clear_are_refused_with_what_would_do(tmp_path: Path) -> None:
    two = add(tmp_path / "two", "train/a.png", "Training/b.png", "val/c.png")
    message = refusal(two)
    assert message.startswith(f"{two} has Training, train, val, and which")
    assert f"data.val_root={two}/val" in message
    mixed = add(tmp_path / "mixed", "train/a.png", "test/b.png", "cat/c.png", "dog/c.png")
    message = refusal(mixed)
    assert "parts of a data set, or classes?" in message
    assert f"data.root={mixed}/train data.val_root={mixed}/test" in message
    splits = split_folder(mixed / "train", 0.5, val_root=mixed / "test")
    assert (splits.train.paths, splits.val.paths) == (["a.png"], ["b.png"])
    with pytest.raises(UserError, match=r"data\.val_root .*none does not exist"):
        split_folder(mixed, 0.5, val_root=mixed / "none")


def test_parts_within_each_class_are_parts(tmp_path: Path) -> None:
    names = [f"{name}/{part}" for name in ("cat", "dog") for part in ("train", "test")]
    add(tmp_path, *(f"{name}/{number}.png" for name in names for number in (1, 2)))
    data = open_data(tmp_path)
    assert data.require_classes() == ("cat", "dog")
    assert {path.split("/")[1] for path in data.train.paths} == {"train"}
    assert data.val.paths == held_out_folder(tmp_path).paths
    assert {path.split("/")[1] for path in data.val.paths} == {"test"}


def test_a_class_folder_without_an_image_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (add(tmp_path, "cat/1.png", "dog/1.png") / "bird").mkdir()
    with caplog.at_level("INFO"):
        assert open_folder(tmp_path).classes == ("cat", "dog")
    assert f"no classes of {tmp_path}, for they hold no image: bird" in caplog.text


def test_what_lies_beside_train_and_val_is_left_out_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(tmp_path, "train/1.png", "val/2.png", "test/3.png", "cat/4.png", "5.png")
    (tmp_path / "empty").mkdir()
    train, val = split_folder(tmp_path, 0.5)
    assert (train.paths, val.paths) == (["1.png"], ["2.png"])
    assert f"left out of {tmp_path}: cat, test, 5.png" in caplog.text


def test_parts_without_one_to_train_on_are_no_classes(tmp_path: Path) -> None:
    add(tmp_path, "val/1.png", "val/2.png", "test/1.png", "test/2.png")
    with pytest.raises(UserError, match="would be test, val, the parts of a data set"):
        open_data(tmp_path).require_classes()


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


def test_a_train_folder_without_a_val_folder_is_a_folder_like_any(tmp_path: Path) -> None:
    add(tmp_path, "train/1.png", "train/2.png")
    train, val = split_folder(tmp_path, 0.5)
    assert sorted([*train.paths, *val.paths]) == ["train/1.png", "train/2.png"]


@pytest.mark.parametrize(
    ("count", "ratio", "held_out"), [(20, 0.25, 5), (20, 0.01, 1), (3, 0.99, 2), (2, 0.5, 1)]
)
def test_the_asked_share_is_held_out_but_at_least_one_image_on_each_side(
    tmp_path: Path, count: int, ratio: float, held_out: int
) -> None:
    add(tmp_path, *(f"{number}.png" for number in range(count)))
    train, val = split_folder(tmp_path, ratio)
    assert len(val) == held_out
    assert sorted([*train.paths, *val.paths]) == sorted(open_folder(tmp_path).paths)


def test_both_parts_know_all_classes(tmp_path: Path) -> None:
    add(tmp_path, *(f"class{number}/image.png" for number in range(6)))
    train, val = split_folder(tmp_path, 0.5)
    assert train.classes == val.classes == tuple(f"class{number}" for number in range(6))
    for part in (train, val):
        for index, path in enumerate(part.paths):
            assert part.load(index)[1] == int(path[len("class")])


def test_a_file_added_later_moves_at_most_one_other(tmp_path: Path) -> None:
    add(tmp_path, *(f"image{number:03}.png" for number in range(40)))
    before = set(split_folder(tmp_path, 0.25).val.paths)
    for number in range(8):
        add(tmp_path, f"new{number}.png")
        after = set(split_folder(tmp_path, 0.25).val.paths)
        old = {path for path in after if path.startswith("image")}
        assert len(before - after) <= 1
        assert len(old - before) <= 1
        before = after


def test_the_split_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(12)]
    one, other = add(tmp_path / "one", *names), add(tmp_path / "other", *reversed(names))
    assert split_folder(one, 0.3).val.paths == split_folder(other, 0.3).val.paths


def test_held_out_images_come_from_all_over_the_order_of_paths(tmp_path: Path) -> None:
    names = [f"image{number:03}.png" for number in range(100)]
    add(tmp_path, *names)
    places = [names.index(path) for path in split_folder(tmp_path, 0.3).val.paths]
    assert np.mean(places) == pytest.approx(49.5, abs=3 * 100 / np.sqrt(12 * 30))


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


def test_an_empty_val_folder_is_refused_by_its_name(tmp_path: Path) -> None:
    add(tmp_path, "train/1.png")
    (tmp_path / "val").mkdir()
    assert refusal(tmp_path).startswith(f"{tmp_path}/val holds no image (")


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


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 7.0])
def test_a_share_that_leaves_a_part_empty_is_refused(tmp_path: Path, ratio: float) -> None:
    add(tmp_path, "a.png", "b.png")
    assert refusal(tmp_path, ratio) == (
        f"data.val_ratio {ratio} is not between 0 and 1 (both excluded); use 0.05, "
        f"or put the images into {tmp_path}/train and {tmp_path}/val"
    )


def test_a_single_image_is_refused(tmp_path: Path) -> None:
    add(tmp_path, "a.png")
    assert refusal(tmp_path) == (
        f"{tmp_path} holds one image, none is left to validate on; add more images"
    )


def test_val_alone_is_held_out_where_there_is_one(tmp_path: Path) -> None:
    add(tmp_path, "train/cat/1.png", "val/dog/2.png", "val/cat/3.png")
    folder = held_out_folder(tmp_path)
    assert folder.paths == ["cat/3.png", "dog/2.png"]
    assert folder.classes == ("cat", "dog")


def test_everything_is_held_out_where_there_is_no_val(tmp_path: Path) -> None:
    folder = held_out_folder(str(add(tmp_path, "10/1.png", "2/2.png")))
    assert folder.paths == ["10/1.png", "2/2.png"]
    assert folder.classes == ("10", "2")
    with pytest.raises(UserError, match=r"does not exist; set data\.root"):
        held_out_folder(tmp_path / "nowhere")
