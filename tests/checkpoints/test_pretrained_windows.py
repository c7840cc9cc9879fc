"""Pretrained windows from the tables in official V2 files; timm's, computed alike, stand in."""

import pytest
import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor

from simmim.checkpoints.formats.official import pretrained_windows
from simmim.checkpoints.read import read_weights


def tables(
    image_size: int, window_size: int | tuple[int, int], pretrained: tuple[int, ...]
) -> dict[str, Tensor]:
    """The tables of relative coordinates by their official names."""
    model = SwinTransformerV2(
        img_size=image_size,
        window_size=window_size,
        embed_dim=8,
        depths=(1, 1, 2, 1),
        num_heads=(1, 1, 1, 1),
        num_classes=0,
        pretrained_window_sizes=pretrained,
    )
    return {name: table for name, table in model.named_buffers() if name.endswith("coords_table")}


@pytest.mark.parametrize(
    ("image_size", "window_size", "pretrained", "expected"),
    [
        (256, 16, (12, 12, 12, 6), [[12, 12], [12, 12], [12, 12], [6, 6]]),
        (384, 24, (12, 12, 12, 6), [[12, 12], [12, 12], [12, 12], [6, 6]]),
        (192, 12, (0, 0, 0, 0), [[12, 12], [12, 12], [12, 12], [6, 6]]),
        (256, 8, (0, 0, 0, 0), [[8, 8], [8, 8], [8, 8], [8, 8]]),
        # Smaller than the pretrained windows, each stage another, and one of two sides.
        (256, 8, (16, 15, 9, 5), [[16, 16], [15, 15], [9, 9], [5, 5]]),
        (256, (4, 8), (0, 0, 0, 0), [[4, 8], [4, 8], [4, 8], [4, 8]]),
        # Of a window of one token, no table tells more.
        (32, 8, (0, 0, 0, 0), [[8, 8], [4, 4], [2, 2], [1, 1]]),
    ],
)
def test_tables_tell(image_size, window_size, pretrained, expected) -> None:
    assert pretrained_windows(tables(image_size, window_size, pretrained)) == expected


def test_wrapped_names_tell_too() -> None:
    named = {f"encoder.{k}": v for k, v in tables(256, 16, (12, 12, 12, 6)).items()}
    assert pretrained_windows(named) == [[12, 12], [12, 12], [12, 12], [6, 6]]


def test_half_precision_is_enough() -> None:
    halves = {k: v.half() for k, v in tables(384, 24, (12, 12, 12, 6)).items()}
    assert pretrained_windows(halves) == [[12, 12], [12, 12], [12, 12], [6, 6]]


def test_without_every_stage_nothing_is_told() -> None:
    some = {k: v for k, v in tables(256, 16, (12, 12, 12, 6)).items() if "layers.1." not in k}
    assert pretrained_windows(some) is None
    assert pretrained_windows({}) is None


def test_a_file_tells_its_pretrained_windows(tmp_path) -> None:
    found = tables(256, 16, (12, 12, 12, 6))
    # `layers.0.downsample` is what tells official files from timm's.
    found |= {"layers.0.blocks.0.attn.qkv.weight": torch.zeros(24, 8)}
    found |= {"layers.0.downsample.reduction.weight": torch.zeros(16, 32)}
    torch.save({"model": found}, tmp_path / "swinv2.pth")
    weights = read_weights(tmp_path / "swinv2.pth")
    assert weights.origin == "official"
    assert weights.pretrained_window_sizes == [[12, 12], [12, 12], [12, 12], [6, 6]]
