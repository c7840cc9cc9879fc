"""Statistics by channel: NumPy's, in any number of parts."""

import json
from functools import reduce

import numpy as np
import pytest
import torch
from PIL import Image

from simmim.data import imagefolder
from simmim.data.channel_stats import ChannelStatistics, image_statistics, part_statistics
from simmim.data.sources.image_folder import open_folder
from simmim.utils.errors import UserError
from simmim.utils.normalization import Normalisation


@pytest.mark.parametrize(("dtype", "scale"), [(torch.uint8, 255), (torch.float32, 1)])
@pytest.mark.parametrize("parts", [1, 3, 10])
def test_any_parts_give_numpys_values(dtype, scale, parts):
    generator = torch.Generator().manual_seed(0)
    images = [
        (torch.rand(4, 3 + number, 5, generator=generator) * 50 + 1000 * (scale == 1)).to(dtype)
        for number in range(10)
    ]
    merged = reduce(
        ChannelStatistics.merge,
        [
            reduce(ChannelStatistics.merge, map(image_statistics, images[part::parts]))
            for part in range(parts)
        ],
    )
    values = np.concatenate([image.numpy().reshape(4, -1) for image in images], 1) / scale
    np.testing.assert_allclose(merged.mean, values.mean(1, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(merged.std, values.std(1, dtype=np.float64), rtol=1e-9)


def test_values_that_are_not_finite_do_not_count():
    values = torch.tensor([[[1.0, torch.nan, 3.0]], [[torch.inf, torch.nan, torch.nan]]])
    whole = image_statistics(values).merge(image_statistics(torch.full((2, 1, 1), 5.0)))
    assert whole.number.tolist() == [3, 1]
    assert whole.mean.tolist() == [3, 5]
    assert whole.std.tolist() == pytest.approx([(8 / 3) ** 0.5, 0])


def test_values_without_a_common_unit_are_refused():
    one, other = torch.ones(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.uint8)
    with pytest.raises(UserError, match="convert them to one type"):
        image_statistics(one).merge(image_statistics(other))


def test_unreadable_images_are_named_and_left_out(tmp_path):
    Image.new("RGB", (2, 2), (255, 0, 51)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    part = part_statistics(open_folder(tmp_path), range(2))
    assert part.statistics.mean.tolist() == pytest.approx([1, 0, 0.2])
    assert len(part.errors) == 1
    assert "b.png" in part.errors[0]
    assert part_statistics(open_folder(tmp_path), [1]).statistics is None


def test_a_file_of_statistics_takes_the_place_of_mean_and_std(tmp_path):
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", np.zeros((2, 8, 8), np.int16))
    file = tmp_path / "statistics.json"
    options = {"root": tmp_path, "image_size": 8, "batch_size": 1, "train_transform": None}
    file.write_text(json.dumps({"mean": [10, 20.5], "std": [1, 2]}))
    data = imagefolder(**options, statistics=file)
    assert data.normalisation == Normalisation((10.0, 20.5), (1.0, 2.0))
    for content in ("", "[]", '{"mean": [1]}', '{"mean": [1], "std": ["a"]}'):
        file.write_text(content)
        with pytest.raises(UserError, match=r"statistics.json holds no mean and std"):
            imagefolder(**options, statistics=file)
    for mean, std in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(UserError, match="give one a channel in both"):
            imagefolder(**options, mean=mean, std=std)
    with pytest.raises(UserError, match="leave constant bands out"):
        imagefolder(**options, mean=[1.0, 2.0], std=[1.0, 0.0])


def test_a_mean_of_levels_is_refused_for_images_of_8_bits(tmp_path):
    """As other programs have it: these values are shares of white."""
    for number in range(3):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{number}.png")
    options = {"root": tmp_path, "image_size": 8, "batch_size": 1, "train_transform": None}
    levels = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
    with pytest.raises(UserError, match=r"data.mean \[123.675, .* by 255"):
        imagefolder(**options, **levels)
