"""Masks that a user gives, checked against the image's grid of tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simmim.models.masking import RandomMaskGenerator
from simmim.reconstruct.masks import masks_of_files, random_masks, read_mask
from simmim.utils.errors import UserError

SIZE, TOKEN = (16, 24), 4


def left_half(height: int, width: int) -> np.ndarray:
    return np.arange(width)[None].repeat(height, axis=0) < width // 2


@pytest.mark.parametrize("name", ["mask.png", "mask.npy"])
@pytest.mark.parametrize("entries", [(16, 24), (8, 12), (4, 6), (2, 3)])
def test_a_mask_has_one_entry_a_token_however_fine_it_was(tmp_path, name, entries):
    values = left_half(*entries)
    if entries[1] == 3:
        values = np.array([[1, 0, 0], [0, 0, 1]], bool)
    path = tmp_path / name
    if name.endswith(".png"):
        Image.fromarray(values).save(path)  # one bit a pixel
    else:
        np.save(path, values.astype(np.int32))
    mask = read_mask(path, SIZE, TOKEN)
    assert mask.shape == (4, 6)
    expected = np.kron(values, np.ones((16 // entries[0],) * 2, bool))[::TOKEN, ::TOKEN]
    assert mask.tolist() == expected.tolist()


def test_white_is_masked(tmp_path):
    picture = Image.new("RGB", (24, 16), "black")
    picture.paste("white", (0, 0, 8, 4))
    picture.save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", SIZE, TOKEN).nonzero().tolist() == [[0, 0], [0, 1]]


WRONG = {
    "another size": (left_half(16, 16), r"is 16×16 and does not divide the image's 16×24 pixels"),
    "other squares": (left_half(4, 12), r"is 4×12 .* use 16×24, or one entry .* of 4 px, 4×6"),
    "a part of a token": (np.arange(24)[None].repeat(16, 0) < 6, r"at row 0, column 6 .* of 4"),
    "all": (np.ones((4, 6), bool), "leaves nothing visible"),
    "nothing": (np.zeros((4, 6), bool), "masks nothing"),
    "other values": (np.arange(24).reshape(4, 6), "has other values than two"),
    "shape": (np.zeros((1, 4, 6), bool), r"has shape \(1, 4, 6\); use \(height, width\)"),
    "empty": (np.zeros((0, 6), bool), "is 0×6 and does not divide"),
    "objects": (np.array([[None]]), "cannot be read .*give a .png or a .npy of numbers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mask_that_does_not_fit_is_named(tmp_path, name):
    values, message = WRONG[name]
    np.save(tmp_path / "mask.npy", values, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        read_mask(tmp_path / "mask.npy", SIZE, TOKEN)


def test_a_picture_in_grey_is_no_mask(tmp_path):
    Image.new("L", (24, 16), 100).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match="use black and white"):
        read_mask(tmp_path / "mask.png", SIZE, TOKEN)
    (tmp_path / "mask.png").write_text("no picture")
    with pytest.raises(UserError, match="cannot be read"):
        read_mask(tmp_path / "mask.png", SIZE, TOKEN)


def test_a_folder_has_a_mask_for_each_image(tmp_path):
    images = [tmp_path / "images" / name for name in ("a.jpg", "b.tif")]
    np.save(tmp_path / "a.npy", left_half(4, 6))
    with pytest.raises(UserError, match=r"b.tif has no mask in .*; put a b.png there"):
        masks_of_files(tmp_path, images, TOKEN)
    np.save(tmp_path / "b.npy", ~left_half(4, 6))
    masks = masks_of_files(tmp_path, images, TOKEN)(images, 0, SIZE)
    assert torch.equal(masks[0], ~masks[1])
    same = masks_of_files(tmp_path / "a.npy", images, TOKEN)(images, 0, SIZE)
    assert torch.equal(same[0], same[1])
    with pytest.raises(UserError, match="does not exist"):
        masks_of_files(tmp_path / "c.npy", images, TOKEN)


def test_random_masks_are_those_of_validation_and_grow_with_the_ratio():
    paths = [Path("a"), Path("b"), Path("c")]
    few, many = (random_masks(8, ratio, TOKEN, 7)(paths, 5, (32, 48)) for ratio in (0.3, 0.6))
    generator = RandomMaskGenerator((32, 48), 8, TOKEN, 0.6, 7)
    assert torch.equal(many, generator(torch.arange(5, 8), step=-1))
    assert not (few & ~many).any()
    assert few.sum() < many.sum()
