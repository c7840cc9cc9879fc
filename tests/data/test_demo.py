import itertools
import pickle

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from simmim.data.synthetic.dataset import DEMO_CLASSES, DemoImages, render
from simmim.data.synthetic.shapes import SHAPE_REACH, SHAPES
from simmim.data.synthetic.textures import TEXTURES


def mean_colours(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    samples = [render(0, split, index, (32, 32)) for index in range(count)]
    colours = np.stack([picture.mean(axis=(0, 1)) for picture, _ in samples])
    return colours, np.array([label for _, label in samples])


def test_same_arguments_give_the_same_bytes_in_any_order() -> None:
    forwards = [render(1, "train", index, (32, 32)) for index in range(20)]
    backwards = [render(1, "train", index, (32, 32)) for index in reversed(range(20))]
    for (picture, label), (again, label_again) in zip(forwards, reversed(backwards), strict=True):
        assert label == label_again
        np.testing.assert_array_equal(picture, again)


@pytest.mark.parametrize("other", [(2, "train", 5), (1, "val", 5), (1, "train", 6)])
def test_another_seed_split_or_index_is_another_picture(other: tuple[int, str, int]) -> None:
    picture, _ = render(1, "train", 5, (32, 32))
    different, _ = render(*other, (32, 32))
    assert np.abs(picture.astype(int) - different).mean() > 5


def test_splits_share_no_picture() -> None:
    train, val = (
        {render(0, split, index, (16, 16))[0].tobytes() for index in range(200)}
        for split in ("train", "val")
    )
    assert len(train) == len(val) == 200
    assert not train & val


@pytest.mark.parametrize("index", range(12))
def test_the_scene_is_the_same_at_every_size(index: int) -> None:
    small, label = render(0, "train", index, (64, 64))
    large, label_at_large = render(0, "train", index, (192, 192))
    shrunk = large.reshape(64, 3, 64, 3, 3).mean(axis=(1, 3))
    unrelated, _ = render(0, "train", index + 1, (64, 64))
    assert label == label_at_large
    assert np.abs(shrunk - small).mean() < 3
    assert np.abs(shrunk - unrelated).mean() > 15


def test_detail_keeps_the_textures_as_fine_in_pixels_in_a_larger_picture() -> None:
    def steepness(side: int, detail: float) -> float:
        pictures = [render(0, "train", index, (side, side), detail)[0] for index in range(36)]
        return float(np.mean([np.abs(np.diff(p.astype(float), axis=0)).mean() for p in pictures]))

    small = steepness(48, 1)
    assert steepness(144, 3) == pytest.approx(small, rel=0.25)
    assert steepness(144, 1) < 0.5 * small
    assert render(0, "train", 5, (48, 48), 3)[1] == render(0, "train", 5, (48, 48))[1]


@pytest.mark.parametrize("image_size", [(32, 80), (80, 32), (16, 16), (37, 51)])
def test_pictures_need_not_be_square(image_size: tuple[int, int]) -> None:
    picture, label = render(0, "train", 3, image_size)
    assert picture.shape == (*image_size, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 5
    assert label == render(0, "train", 3, (64, 64))[1]


def test_every_block_of_samples_holds_every_class_once() -> None:
    count = len(DEMO_CLASSES)
    labels = np.array([render(0, "train", index, (16, 16))[1] for index in range(10 * count)])
    blocks = labels.reshape(10, count)
    np.testing.assert_array_equal(np.sort(blocks), np.tile(np.arange(count), (10, 1)))
    assert len({tuple(block) for block in blocks}) > 1


def test_mean_colour_does_not_tell_the_class() -> None:
    classifier = make_pipeline(StandardScaler(), LogisticRegression())
    classifier.fit(*mean_colours("train", 900))
    assert classifier.score(*mean_colours("val", 450)) < 0.2


def test_textures_of_the_classes_differ() -> None:
    assert len(DEMO_CLASSES) >= 10
    axis = np.linspace(-2, 2, 200, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    shares = {name: texture(u, v, 0.02) for name, texture in TEXTURES.items()}
    for first, second in itertools.combinations(DEMO_CLASSES, 2):
        assert np.abs(shares[first] - shares[second]).mean() > 0.1, (first, second)


@pytest.mark.parametrize("name", TEXTURES)
def test_textures_repeat_and_show_both_colours(name: str) -> None:
    axis = np.linspace(0, 10, 400, endpoint=False, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    share = TEXTURES[name](u, v, 0.02)
    assert share.dtype == np.float32
    assert share.min() == 0
    assert share.max() == 1
    assert 0.15 < share.mean() < 0.85
    # Ten periods along an axis hold a whole number of every texture's repeats.
    np.testing.assert_allclose(TEXTURES[name](u + 10, v, 0.02), share, atol=1e-2)
    np.testing.assert_allclose(TEXTURES[name](u, v + 10, 0.02), share, atol=1e-2)


@pytest.mark.parametrize("name", SHAPES)
def test_outlines_lie_within_reach_and_keep_single_precision(name: str) -> None:
    axis = np.linspace(-1.5, 1.5, 301, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    distance = SHAPES[name](x, y)
    assert distance.shape == (301, 301)
    assert distance.dtype == np.float32
    assert (distance < 0).any()
    assert (distance[np.hypot(x, y) > SHAPE_REACH + 0.01] > 0).all()


def test_outlines_are_as_steep_as_a_distance() -> None:
    # Elsewhere the edges would come out blurred or jagged.
    axis = np.linspace(-1.5, 1.5, 301, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    for outline in SHAPES.values():
        distance = outline(x, y)
        steepness = np.hypot(*np.gradient(distance, 0.01))
        assert np.median(steepness[np.abs(distance) < 0.02]) == pytest.approx(1, abs=0.05)


def test_dataset_gives_tensors_and_names() -> None:
    images = DemoImages(split="train", size=20, image_size=(32, 48), seed=3)
    tensor, label = images.load(17)
    picture, expected_label = render(3, "train", 17, (32, 48))
    assert len(images) == 20
    assert images.classes == DEMO_CLASSES
    assert images.identifier(17) == "demo/train/17"
    assert label == expected_label
    assert tensor.dtype == torch.uint8
    assert tensor.is_contiguous()
    assert torch.equal(tensor.permute(1, 2, 0), torch.from_numpy(picture))
    assert torch.equal(pickle.loads(pickle.dumps(images))[17][0], tensor)


@pytest.mark.parametrize("index", [-1, 20])
def test_an_index_out_of_range_is_an_error(index: int) -> None:
    images = DemoImages(split="train", size=20, image_size=(32, 32))
    with pytest.raises(IndexError, match=f"demo index is {index}; .* from 0 to 19"):
        images.load(index)
    with pytest.raises(IndexError, match="from 0 to 19"):
        images.identifier(index)


@pytest.mark.parametrize(
    ("size", "image_size", "seed", "message"),
    [
        (0, (32, 32), 0, "demo train_size is 0; it must be at least 1: .+"),
        (5, (32, 15), 0, r"image_size \(height, width\) is \(32, 15\); .* at least 16 px .*: .+"),
        (5, (32, 32), -1, "demo seed is -1; it must be at least 0: .+"),
    ],
)
def test_values_too_small_are_errors(
    size: int, image_size: tuple[int, int], seed: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        DemoImages(split="train", size=size, image_size=image_size, seed=seed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("detail", [0.0, -1.0])
def test_a_texture_of_no_size_is_an_error(detail: float) -> None:
    with pytest.raises(
        ValueError, match=r"demo detail is .*; it must be more than 0: 1 is the usual"
    ):
        DemoImages(split="train", size=5, image_size=(32, 32), detail=detail)
