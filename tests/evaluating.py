"""What tests of evaluation judge: labelled folders, and a classifier whose predictions differ."""

from pathlib import Path

import numpy as np
import torch
from conftest import TINY_DEMO
from PIL import Image

import simmim
from simmim.models.classifier import Classifier

EVALUATE = [option for option in TINY_DEMO if not option.startswith("model.")]
FOLDER = [option for option in EVALUATE if "_size=" not in option or "batch" in option]


def picture(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Plain colours far apart, so that an untrained classifier tells some of them apart.
    values = np.broadcast_to(rng.integers(0, 255, 3), (32, 32, 3)) // 2
    noise = rng.integers(0, 120, (32, 32, 3))
    Image.fromarray((values + noise).astype(np.uint8)).save(path)


def labelled(root: Path, names: list[str], count: int = 3) -> Path:
    rng = np.random.default_rng(len(names))
    for name in names:
        for number in range(count):
            picture(root / name / f"{number}.png", rng)
    return root


def write_classifier(path: Path) -> Path:
    """Twelve classes c00 … c11, with large random weights."""
    torch.manual_seed(0)
    encoder = simmim.create_encoder(
        "swinv2_nano", image_size=32, window_size=4, embed_dim=32, depths=[1, 1], num_heads=[1, 2]
    )
    model = Classifier(encoder, 12)
    torch.nn.init.normal_(model.head.linear.weight)
    simmim.save_classifier(model, path, [f"c{number:02d}" for number in range(12)])
    return path
