"""A classifier carried to larger images and windows, through our files, against timm's.

Swin V2 (arXiv 2111.09883), table 1: pretrained at 192 pixels with windows of 12.
"""

from pathlib import Path

import torch
from conftest import compose
from torch import Tensor

import simmim
from simmim.checkpoints import to_timm
from simmim.checkpoints.load import Initialisation
from simmim.checkpoints.model_init import ModelInit
from simmim.models.classifier import Classifier
from simmim.models.swin import create_encoder

from .compare import FLOAT32, assert_equal, build, draw_images, randomise
from .theirs import timm_swinv2

TRANSFERRED = (12, 12, 12, 6)
CLASSES = tuple("abcdefghij")


def carry(path: Path, image_size: int, window_size: int) -> Classifier:
    """What the transfer stage starts from."""
    sizes = [f"model.image_size={image_size}", f"model.window_size={window_size}"]
    start = ModelInit(compose("transfer", sizes).model, Initialisation(str(path)))
    return start.create_classifier(start.find_outputs(CLASSES)).eval()


@torch.no_grad()
def test_twice_through_files_equals_timm(tmp_path: Path) -> None:
    encoder = build(lambda: create_encoder("swinv2_t", image_size=192, window_size=12))
    first = randomise(Classifier(encoder, 10))
    weights: dict[str, Tensor] = to_timm(first.state_dict())
    simmim.save_classifier(first, tmp_path / "192.safetensors", CLASSES)
    for before, image_size, window_size in ((192, 256, 16), (256, 384, 24)):
        ours = carry(tmp_path / f"{before}.safetensors", image_size, window_size)
        theirs = timm_swinv2(ours.encoder, TRANSFERRED, num_classes=10)
        theirs.load_state_dict(weights)
        images = draw_images(1, 3, image_size, image_size)
        assert_equal(ours(images), theirs(images), FLOAT32, f"{image_size}")
        simmim.save_classifier(ours, tmp_path / f"{image_size}.safetensors", CLASSES)
