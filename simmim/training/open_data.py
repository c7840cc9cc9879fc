"""The images that a stage's options name, in its encoder's size."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from simmim.data import ImageDataModule
from simmim.data.dataset import Transform
from simmim.models.swin import SwinTransformer
from simmim.utils.errors import UserError


def open_data(
    data: DictConfig,
    encoder: SwinTransformer,
    train_transform: Transform | None,
    seed: int,
    run_dir: str,
    *,
    goes_on: bool = False,
) -> ImageDataModule:
    """The data that `data` names in the encoder's size; UserError for other channels than it takes.

    What cannot be read of it is listed in the run directory; a run that `goes_on` adds to its list.
    """
    images: ImageDataModule = instantiate(
        data, image_size=encoder.image_size, train_transform=train_transform, seed=seed
    )
    images.list_skipped(Path(run_dir), goes_on=goes_on)
    channels = len(images.normalisation.mean)
    if channels != encoder.in_channels:
        raise UserError(
            f"the data has {channels} channels and model.in_channels is {encoder.in_channels}; "
            f"use model.in_channels={channels}"
        )
    return images
