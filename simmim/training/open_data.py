"""Creates a stage's data module at the image size of its encoder."""

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
    """Creates the data module that `data` describes, at the encoder's image size.

    Images that cannot be read are listed in `run_dir`; a resumed run (`goes_on`) appends to its
    list.

    Raises:
        UserError: the data has another number of channels than the encoder.
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
