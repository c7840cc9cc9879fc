"""Images in: sources, transforms, sampling, loaders. Knows nothing of models."""

from simmim.data.datamodule import ImageDataModule, demo, imagefolder

__all__ = ["ImageDataModule", "demo", "imagefolder"]
