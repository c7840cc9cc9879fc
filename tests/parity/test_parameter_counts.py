"""Parameter counts against the papers' models; on the meta device, so that G costs nothing."""

import pytest
import timm
import torch
from torch import nn

from simmim.models.classifier import Classifier
from simmim.models.swin import create_encoder

# Without and with a head of 1000 classes. H and G have one more LayerNorm every 6 blocks.
SWINV2 = {
    "swinv2_t": (27_578_154, 28_347_154),
    "swinv2_s": (48_959_418, 49_728_418),
    "swinv2_b": (86_893_816, 87_918_816),
    "swinv2_l": (195_202_932, 196_739_932),
    "swinv2_h": (655_210_922 + 8_448, 658_027_922 + 8_448),
    "swinv2_g": (2_997_815_008 + 28_672, 3_001_912_008 + 28_672),
}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", SWINV2)
def test_swinv2(name: str) -> None:
    with torch.device("meta"):
        encoder = create_encoder(name, image_size=192, window_size=12)
        classifier = Classifier(encoder, 1000)
    assert (count(encoder), count(classifier)) == SWINV2[name]


@pytest.mark.parametrize(
    ("name", "their_name"),
    [("swin_t", "tiny"), ("swin_s", "small"), ("swin_b", "base"), ("swin_l", "large")],
)
def test_swin_equals_timm(name: str, their_name: str) -> None:
    with torch.device("meta"):
        ours = Classifier(create_encoder(name, image_size=224, window_size=7), 1000)
        theirs = timm.create_model(f"swin_{their_name}_patch4_window7_224")
    assert count(ours) == count(theirs)
