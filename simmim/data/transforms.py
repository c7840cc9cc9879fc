"""From a decoded uint8 image of any size to one of the size that the model takes, still uint8."""

from collections.abc import Sequence

from jaxtyping import UInt8
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from simmim.errors import UserError
from simmim.sizes import Pair, Size, as_pair


def light_augmentation(
    image_size: Size,
    scale: Sequence[float] = (0.67, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> v2.Transform:
    """Random resized crop and horizontal flip (SimMIM, section 4.1).

    `scale` is the crop's share of the image's area, `ratio` its width over height, `flip` the
    probability of a mirror image.

    Raises:
        UserError: ranges that are empty or outside their bounds.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(f"augmentation.scale {list(scale)} is not within (0, 1]; use [0.67, 1.0]")
    if not 0 < ratio[0] <= ratio[1]:
        raise UserError(f"augmentation.ratio {list(ratio)} is not a range; use [0.75, 1.3333]")
    if not 0 <= flip <= 1:
        raise UserError(f"augmentation.flip {flip} is not a probability; use 0.5, or 0 for none")
    crop = v2.RandomResizedCrop(
        as_pair(image_size, "model.image_size"),
        scale=tuple(scale),
        ratio=tuple(ratio),
        interpolation=InterpolationMode.BICUBIC,
        antialias=True,
    )
    return v2.Compose([crop, v2.RandomHorizontalFlip(flip)])


class CenterCrop(nn.Module):
    """The largest centred rectangle of the target's shape, resized to the target."""

    def __init__(self, image_size: Size) -> None:
        super().__init__()
        self.image_size: Pair = as_pair(image_size, "model.image_size")

    def forward(self, image: UInt8[Tensor, "c h w"]) -> UInt8[Tensor, "c h2 w2"]:
        """Crops and resizes; the same for the same image."""
        height, width = image.shape[-2:]
        target_height, target_width = self.image_size
        scale = min(height / target_height, width / target_width)
        crop_size = [
            max(1, round(target_height * scale)),
            max(1, round(target_width * scale)),
        ]
        cropped = F.center_crop(image, crop_size)
        return F.resize(cropped, list(self.image_size), InterpolationMode.BICUBIC, antialias=True)
