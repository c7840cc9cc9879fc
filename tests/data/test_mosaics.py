import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from simmim.data.synthetic.dataset import DemoImages
from simmim.data.synthetic.mosaics import DISTANCE, MOSAIC_CLASSES, render_mosaic

WHITE = len(MOSAIC_CLASSES)


def tiles(index: int, detail: float = 1.0) -> tuple[np.ndarray, int]:
    """The colour of every tile of a training picture, the class's place or `WHITE`, and its label."""
    count = round(16 * detail)
    picture, label = render_mosaic(0, "train", index, (4 * count, 4 * count), detail)
    means = picture.reshape(count, 4, count, 4, 3).mean(axis=(1, 3))
    return np.where(means.min(axis=-1) > 150, WHITE, means.argmax(axis=-1)), label


def test_three_tiles_right_of_a_white_one_lies_the_class() -> None:
    for index in range(30):
        colours, label = tiles(index)
        is_white = colours == WHITE
        assert is_white.mean() > 0.2
        assert not is_white[:, -DISTANCE:].any()
        assert (colours[:, DISTANCE:][is_white[:, :-DISTANCE]] == label).all()


@pytest.mark.parametrize("distance", [1, 2, 4, 5, 7])
def test_distances_that_are_no_multiple_do_not_tell_the_class(distance: int) -> None:
    shares = []
    for index in range(120):
        colours, label = tiles(index)
        # Whites of the middle, so that the borders have no part in it.
        away = colours[:, 7:-1][colours[:, 7 - distance : -1 - distance] == WHITE]
        shares.append((away == label).mean() / (colours[:, 7:-1] == label).mean())
    assert np.mean(shares) == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize("detail", [1.0, 1.5, 3.0])
def test_every_picture_has_as_many_tiles_of_each_colour(detail: float) -> None:
    for index in range(6):
        colours, _ = tiles(index, detail)
        counts = np.bincount(colours.ravel(), minlength=4)[:WHITE]
        assert counts.max() - counts.min() <= 1


def test_mean_colour_does_not_tell_the_class() -> None:
    def mean_colours(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        samples = [render_mosaic(0, split, index, (64, 64)) for index in range(count)]
        return np.stack([p.mean(axis=(0, 1)) for p, _ in samples]), np.array(
            [n for _, n in samples]
        )

    classifier = make_pipeline(StandardScaler(), LogisticRegression())
    classifier.fit(*mean_colours("train", 600))
    assert classifier.score(*mean_colours("val", 300)) < 0.42


def test_a_mosaic_is_a_function_of_seed_split_and_index() -> None:
    picture, label = render_mosaic(1, "train", 5, (48, 80))
    again, label_again = render_mosaic(1, "train", 5, (48, 80))
    np.testing.assert_array_equal(picture, again)
    assert label == label_again
    assert picture.shape == (48, 80, 3)
    assert picture.dtype == np.uint8
    for other in ((2, "train", 5), (1, "val", 5), (1, "train", 6)):
        assert np.abs(render_mosaic(*other, (48, 80))[0].astype(int) - picture).mean() > 20


def test_the_demo_data_gives_mosaics_with_their_classes() -> None:
    images = DemoImages(split="val", size=9, image_size=(64, 64), pictures="mosaics")
    tensor, label = images.load(4)
    picture, expected = render_mosaic(0, "val", 4, (64, 64))
    np.testing.assert_array_equal(tensor.permute(1, 2, 0).numpy(), picture)
    assert label == expected
    assert images.classes == images.present_classes() == MOSAIC_CLASSES
