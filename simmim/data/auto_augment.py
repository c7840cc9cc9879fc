"""timm's augmentation policies: RandAugment, AugMix, AutoAugment and 3-Augment."""

import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from PIL import Image, ImageOps

from simmim.data.dataset import seeded
from simmim.utils.errors import UserError
from simmim.utils.normalization import IMAGENET_MEAN
from simmim.utils.sizes import Pair

_NUMBER = r"\d+(\.\d+)?"
# timm ignores a section that it cannot parse, and a set of operations that it does not know.
_SECTIONS = {
    "rand": rf"m\d+|n\d+|mmax\d+|inc[01]|p{_NUMBER}|mstd{_NUMBER}|t(weights|3aw|3a)",
    "augmix": rf"m\d+|w[1-9]\d*|d[1-9]\d*|b[01]|mstd{_NUMBER}",
    **dict.fromkeys(("original", "originalr", "v0", "v0r", "3a"), rf"mstd{_NUMBER}"),
}


def create_policy(policy: str, image_size: Pair) -> Any:
    """A timm `policy`, from one Pillow image to another, with the options that Swin is trained with.

    Rotation and shear are bicubic; empty areas get ImageNet's mean colour. An image posterised to 0
    bits, as are 0.15% with `rand-m9-mstd0.5-inc1`, is black, as it was for Swin's classifiers and
    is in the TensorFlow code that timm follows. Pillow refuses this since 13.0.

    Raises:
        UserError: a name or a section that timm does not know, more operations than there are, or
            an image size that this version of timm cannot mix.
    """
    # 0 is the default; earlier versions of timm read it as 1.
    name, *sections = (part for part in policy.split("-") if part not in ("inc0", "b0"))
    unknown = [
        part for part in sections if not re.fullmatch(_SECTIONS.get(name, ""), part, re.ASCII)
    ]
    if name not in _SECTIONS or unknown:
        what = f"has the part {unknown[0]!r} and" if name in _SECTIONS else "and"
        raise UserError(
            f"augmentation.rand_augment={policy} {what} is no policy of timm; use "
            f"rand-m9-mstd0.5-inc1, or one that begins with {', '.join(_SECTIONS)}"
        )
    # timm takes a second to import, which a run without such a policy saves.
    from timm.data import auto_augment

    policy = "-".join([name, *sections])
    options = {
        "translate_const": int(min(image_size) * 0.45),
        "img_mean": tuple(round(255 * value) for value in IMAGENET_MEAN),
        "interpolation": Image.Resampling.BICUBIC,
    }
    if name == "rand":
        transform: Any = auto_augment.rand_augment_transform(policy, options)
        drawn_once = transform.choice_weights is not None
        if drawn_once and transform.num_layers > len(transform.ops):
            raise UserError(
                f"augmentation.rand_augment={policy} draws {transform.num_layers} of "
                f"{len(transform.ops)} operations, none twice; use n{len(transform.ops)} or less"
            )
    elif name == "augmix":
        # The fraction of the image's size that timm itself uses for AugMix.
        options["translate_pct"] = 0.3
        transform = auto_augment.augment_and_mix_transform(policy, options)
        require_shape(transform, image_size, policy)
    else:
        transform = auto_augment.auto_augment_transform(policy, options)
    for operation in operations(transform):
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = posterize
    return transform


def require_shape(transform: Any, image_size: Pair, policy: str) -> None:
    """Raises UserError for images that are not square, if AugMix needs square ones (older timm)."""
    height, width = image_size
    if height == width:
        return
    try:
        with seeded(0):
            transform(Image.new("RGB", (2, 1)))
    except ValueError as error:
        raise UserError(
            f"augmentation.rand_augment={policy} takes square images alone in timm "
            f"{version('timm')}, not {height} × {width}; use a later timm, or rand-m9-mstd0.5-inc1"
        ) from error


def operations(policy: Any) -> Iterator[Any]:
    """All of a policy's operations (timm's `AugmentOp`)."""
    if hasattr(policy, "ops"):
        yield from policy.ops
    else:
        for alternative in policy.policy:
            yield from alternative


def posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """Keeps the `bits_to_keep` highest bits of each value: all for 8 or more, none for 0 or less."""
    if bits_to_keep >= 8:
        return image
    if bits_to_keep <= 0:
        return Image.new(image.mode, image.size)
    return ImageOps.posterize(image, bits_to_keep)
