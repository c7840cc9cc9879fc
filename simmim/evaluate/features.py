"""Images as an encoder sees them: one vector each, its last feature map averaged."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simmim.data.dataset import Sample
from simmim.models.swin import SwinTransformer
from simmim.utils.normalization import Normalisation


class Features(NamedTuple):
    """A vector an image, with its label and place in its source (-1: a repeat that does not count)."""

    values: Float[Tensor, "n c"]
    labels: Int[Tensor, " n"]
    sample_index: Int[Tensor, " n"]

    def counted(self) -> "Features":
        """Without the repeats."""
        return Features(*(column[self.sample_index >= 0] for column in self))

    def gather(self, all_gather: Callable[[Tensor], Tensor]) -> "Features":
        """Those of all ranks, which have equally many."""
        # What comes from several ranks has one dimension more.
        return Features(*(all_gather(column).reshape(-1, *column.shape[1:]) for column in self))


@torch.no_grad()
def extract_features(
    encoder: SwinTransformer,
    batches: Iterable[Sample],
    normalisation: Normalisation,
    device: torch.device,
) -> Features:
    """Features of all images of the `batches`, in float32 on the `device`.

    The encoder is one that does not train.
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
