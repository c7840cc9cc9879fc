"""The parts of an image folder: to train on, held out, and classes common to both."""

from pathlib import Path

import numpy as np
import pytest
from image_folders import add, open_data, refusal

from simmim.data.sources.image_folder import held_out_folder, open_folder, split_folder
from simmim.utils.errors import UserError


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


def test_an_empty_val_folder_is_refused_by_its_name(tmp_path: Path) -> None:
    add(tmp_path, "train/1.png")
    (tmp_path / "val").mkdir()
    assert refusal(tmp_path).startswith(f"{tmp_path}/val holds no image (")


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
