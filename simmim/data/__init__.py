"""Images in: sources, streams, transforms, sampling, loaders. Knows nothing of models."""

from simmim.data.datamodule import ImageDataModule
from simmim.data.factories import demo, hf, imagefolder, webdataset

__all__ = ["ImageDataModule", "demo", "hf", "imagefolder", "webdataset"]
