"""Image data: sources, streams, transforms, samplers and loaders, independent of the models."""

from simmim.data.datamodule import ImageDataModule
from simmim.data.factories import demo, hf, imagefolder, webdataset

__all__ = ["ImageDataModule", "demo", "hf", "imagefolder", "webdataset"]
