"""Weights of other programs at sizes that take padding: told of, with sizes that take none."""

from pathlib import Path

import pytest
import torch
from conftest import compose

import simmim
from simmim.checkpoints import to_hf, to_official, to_timm
from simmim.checkpoints.formats.compatibility import find_padding, sizes_without_padding
from simmim.checkpoints.load import Initialisation
from simmim.checkpoints.model_file import TrainedModel, load_encoder, save_encoder
from simmim.checkpoints.model_init import ModelInit
from simmim.export.hugging_face import save_hugging_face
from simmim.models.swin import SwinTransformer
from simmim.models.swin.blocks import SwinBlock
from simmim.utils.normalization import Normalisation


def create(image_size: int | tuple[int, int], window_size: int = 4) -> SwinTransformer:
    return simmim.create_encoder(
        "swinv2_t",
        image_size=image_size,
        window_size=window_size,
        embed_dim=32,
        depths=(1, 1),
        num_heads=(1, 2),
    )


def plan(image_size: str, path: Path) -> ModelInit:
    return ModelInit(
        compose(
            "finetune",
            [
                *("model=swinv2_t", "model.window_size=4", "model.embed_dim=32"),
                *("model.depths=[1,1]", "model.num_heads=[1,2]", f"model.image_size={image_size}"),
            ],
        ).model,
        Initialisation(str(path)),
    )


@pytest.mark.parametrize(
    ("convert", "told"),
    [
        (to_timm, "timm models attend to it"),
        (to_hf, "Hugging Face models attend to it"),
        (to_official, "official models take no such size"),
        (dict, ""),
    ],
)
def test_whose_weights_they_are_decides_what_is_told(convert, told, tmp_path, caplog):
    encoder = create(32)
    torch.save(convert(dict(encoder.state_dict())), tmp_path / "a.pth")
    plan("32", tmp_path / "a.pth")
    assert "padding" not in caplog.text
    plan("[40,64]", tmp_path / "a.pth")
    assert ("padding" in caplog.text) == bool(told)
    if told:
        assert told in caplog.text
        assert "use model.image_size=[32,64] or 64, the nearest that need none" in caplog.text


def test_a_hugging_face_folder_is_told_of_where_it_is_loaded_and_our_file_is_not(tmp_path, caplog):
    save_hugging_face(TrainedModel(create(32), (), Normalisation()), tmp_path / "hf")
    config = tmp_path / "hf" / "config.json"
    load_encoder(tmp_path / "hf")
    config.write_text(config.read_text().replace('"image_size": 32', '"image_size": 40'))
    save_encoder(create(40), tmp_path / "ours.safetensors")
    load_encoder(tmp_path / "ours.safetensors")
    assert "padding" not in caplog.text
    load_encoder(tmp_path / "hf")
    assert "model.image_size=32 or 64" in caplog.text or "model.image_size=32 or" in caplog.text


@pytest.mark.parametrize("image_size", [(192, 256), (256, 384), (40, 72), (8, 200), (104, 104)])
@pytest.mark.parametrize("window_size", [3, 4, 7, 8])
def test_sizes_next_to_it_take_no_padding(image_size, window_size):
    with torch.device("meta"):
        encoder = create(image_size, window_size)
        nearest = sizes_without_padding(encoder)
        assert nearest
        assert (find_padding(encoder) is None) == (nearest == [image_size])
        for size in nearest:
            other = create(size, window_size)
            assert find_padding(other) is None
            grids = [m.grid for m in other.modules() if isinstance(m, SwinBlock)]
            assert all(grid.padded_size == grid.feature_size for grid in grids)
