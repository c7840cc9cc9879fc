"""Feature extraction: one vector per image, the mean of the encoder's last feature map."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simmim.data.dataset import Sample
from simmim.models.swin import SwinTransformer
from simmim.utils.normalization import Normalisation


class Features(NamedTuple):
    """One vector per image, with its label and index in the source (-1: a repeat, not counted)."""

    values: Float[Tensor, "n c"]
    labels: Int[Tensor, " n"]
    sample_index: Int[Tensor, " n"]

    def counted(self) -> "Features":
        """The features without repeats."""
        return Features(*(column[self.sample_index >= 0] for column in self))

    def gather(self, all_gather: Callable[[Tensor], Tensor]) -> "Features":
        """The features of all ranks, which must have the same number of images."""
        # With several ranks, `all_gather` adds a leading dimension.
        return Features(*(all_gather(column).reshape(-1, *column.shape[1:]) for column in self))


@torch.no_grad()
def extract_features(
    encoder: SwinTransformer,
    batches: Iterable[Sample],
    normalisation: Normalisation,
    device: torch.device,
) -> Features:
    """Features of all images of the `batches`, in float32 on the `device`.

    The encoder must be in eval mode.
    """
    columns = []
    for batch in batches:
        images = batch.image.to(device, non_blocking=True)
        maps = encoder(normalisation.normalise(images))
        columns.append(
            (
                maps.float().mean(dim=(2, 3)),
                torch.as_tensor(batch.label).to(device),
                torch.as_tensor(batch.sample_index).to(device),
            )
        )
    values, labels, sample_index = (torch.cat(parts) for parts in zip(*columns, strict=True))
    return Features(values, labels, sample_index)
