"""Small image folders, the data of one, and its refusal."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from simmim.data import ImageDataModule, imagefolder
from simmim.data.sources.image_folder import split_folder
from simmim.utils.errors import UserError


def add(root: Path, *paths: str, shade: int = 0) -> Path:
    """Writes small images below a folder."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 3), shade).save(root / path)
    return root


def open_data(root: Path, val_ratio: float = 0.5, **options: str) -> ImageDataModule:
    return imagefolder(
        root=root,
        image_size=4,
        batch_size=1,
        train_transform=torch.nn.Identity(),
        val_ratio=val_ratio,
        num_workers=0,
        **options,
    )


def refusal(root: str | Path, val_ratio: float = 0.5) -> str:
    with pytest.raises(UserError) as caught:
        split_folder(root, val_ratio)
    return str(caught.value)
