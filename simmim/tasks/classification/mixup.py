"""Mixup and CutMix over a batch, by timm."""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from simmim.utils.errors import UserError

# From images and their labels to mixed images and soft labels, one probability per class.
Mix: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def create_mixup(
    *,
    mixup: float,
    cutmix: float,
    label_smoothing: float,
    num_classes: int,
    batch_size: int,
) -> Mix | None:
    """Timm's mixer (Mixup, arXiv 1710.09412; CutMix, arXiv 1905.04899); None where both alphas are 0.

    `mixup` and `cutmix` are alphas of beta distributions; `label_smoothing` is the share of a label
    that is spread evenly over all classes.

    Raises:
        UserError: an alpha or a smoothing out of range, or an odd batch, whose halves cannot mix.
    """
    if mixup < 0 or cutmix < 0:
        raise UserError(
            f"mixing.mixup {mixup} and mixing.cutmix {cutmix} cannot be negative; use 0"
        )
    if not 0 <= label_smoothing < 1:
        raise UserError(f"mixing.label_smoothing {label_smoothing} is not in [0, 1); use 0.1")
    if mixup == 0 and cutmix == 0:
        return None
    if batch_size % 2:
        raise UserError(
            f"data.batch_size {batch_size} is odd and Mixup pairs images; use {batch_size + 1}, "
            "or mixing.mixup=0 mixing.cutmix=0"
        )
    # Importing timm takes a second, which a run without mixing can save.
    from timm.data.mixup import Mixup

    mix: Mix = Mixup(  # type: ignore[no-untyped-call]
        mixup_alpha=mixup,
        cutmix_alpha=cutmix,
        label_smoothing=label_smoothing,
        num_classes=num_classes,
    )
    return mix
