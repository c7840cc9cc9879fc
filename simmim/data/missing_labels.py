"""Finds images without a label, where labels are needed."""

from typing import Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from simmim.data.dataset import ImageSource
from simmim.data.sources.image_folder import ImageFolder
from simmim.utils.console import warn
from simmim.utils.errors import UserError

_WAY_OUT = (
    "leave them out of the dataset, or name splits that have labels by data.train_split and "
    "data.val_split"
)


@runtime_checkable
class PartlyLabelled(ImageSource, Protocol):
    """A source with classes, of which some images may have no label."""

    def unlabelled(self) -> list[int]:
        """Indices of the images without a label."""


def require_labels(source: ImageSource, what: str) -> None:
    """Raises UserError, which names an image, if images have no label; `what` describes them."""
    missing = source.unlabelled() if isinstance(source, PartlyLabelled) else []
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(source):,} {what} images have no label ({_why(source)}), as "
            f"{source.identifier(missing[0])}; {_WAY_OUT}"
        )


def _why(source: ImageSource) -> str:
    if isinstance(source, ImageFolder):
        return "they lie in no class folder"
    return "-1, null or an unknown name"


def keep_labelled(source: ImageSource) -> ImageSource:
    """The source without images that are outside of the class folders, with a warning."""
    strays = source.unlabelled() if isinstance(source, ImageFolder) else []
    if not strays:
        return source
    assert isinstance(source, ImageFolder)
    first = source.identifier(strays[0])
    more = f" and {len(strays) - 1} more" if len(strays) > 1 else ""
    warn(f"left out for want of a label: {first}{more}, beside the class folders")
    return source.labelled()


def require_label_each(labels: Int[Tensor, " b"]) -> None:
    """Like `require_labels` for a batch of a stream, whose labels are not known before."""
    missing = int((labels < 0).sum())
    if missing:
        raise UserError(
            f"{missing} of {len(labels)} images of a batch have no label (-1, null or an unknown "
            f"name), and others may not; {_WAY_OUT}"
        )
