"""Transforms from an image of any size to the model's image size, of the same dtype."""

import math
from collections.abc import Sequence
from typing import get_args

import torch
from jaxtyping import Real, UInt8
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from simmim.data.auto_augment import create_policy
from simmim.data.dataset import Transform
from simmim.data.decoding.lazy_image import Box, DecodedImage, LazyImage
from simmim.data.decoding.resize import Interpolation, resize
from simmim.utils.errors import UserError
from simmim.utils.sizes import Pair, Size, as_pair


def light_augmentation(
    image_size: Size,
    scale: Sequence[float] = (0.67, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    interpolation: Interpolation = "bicubic",
) -> "CropFirst":
    """Random resized crop and horizontal flip (SimMIM, section 4.1).

    `scale` is the crop's share of the image's area, `ratio` its width over height, `flip` the
    probability of a mirror image, `interpolation` (antialiased) how the crop is resized.

    Raises:
        UserError: ranges that are empty or outside their bounds, or an unknown interpolation.
    """
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(f"augmentation.scale {list(scale)} is not within (0, 1]; use [0.67, 1.0]")
    if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
        raise UserError(f"augmentation.ratio {list(ratio)} is not a range; use [0.75, 1.3333]")
    if not 0 <= flip <= 1:
        raise UserError(f"augmentation.flip {flip} is not a probability; use 0.5, or 0 for none")
    if interpolation not in get_args(Interpolation):
        names = " or ".join(get_args(Interpolation))
        raise UserError(f"augmentation.interpolation {interpolation} is unknown; use {names}")
    crop = RandomCrop(as_pair(image_size, "model.image_size"), scale, ratio, interpolation)
    return CropFirst(crop, RandomFlip(flip))


def strong_augmentation(
    image_size: Size,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    rand_augment: str | None = "rand-m9-mstd0.5-inc1",
    random_erasing: float = 0.25,
    interpolation: Interpolation = "bicubic",
) -> "CropFirst":
    """The augmentation that Swin is fine-tuned with (Swin V1, section 4.1), by timm.

    `scale`, `ratio`, `flip` and `interpolation` are as in `light_augmentation`.
    `rand_augment` is a policy of timm (`rand-…`, `augmix-…`, `original`, `v0`; None: without);
    `random_erasing` is the probability that a rectangle is filled with noise. Mixup and CutMix act
    on batches and are not included.

    Raises:
        UserError: ranges outside their bounds.
    """
    if not 0 <= random_erasing <= 1:
        raise UserError(
            f"augmentation.random_erasing {random_erasing} is not a probability; use 0.25"
        )
    light = light_augmentation(image_size, scale, ratio, flip, interpolation)
    steps = list(light.steps)
    if rand_augment is not None:
        steps.append(RandAugment(rand_augment, light.crop.size))
    if random_erasing > 0:
        steps.append(NoiseErasing(random_erasing))
    return CropFirst(light.crop, *steps)


def require_channels(transform: Transform | None, channels: int) -> None:
    """Raises UserError for an augmentation of RGB images if the data has other channels."""
    steps = transform.steps if isinstance(transform, CropFirst) else ()
    if channels != 3 and any(isinstance(step, RandAugment) for step in steps):
        raise UserError(
            f"augmentation.rand_augment changes the colours of RGB pictures and the data has "
            f"{channels} channels; use augmentation.rand_augment=null"
        )


class CropFirst(nn.Module):
    """A crop of an image that may not be decoded yet, and the transforms that follow it."""

    def __init__(self, crop: "RandomCrop", *steps: nn.Module) -> None:
        super().__init__()
        self.crop = crop
        self.steps = nn.ModuleList(steps)

    def forward(self, image: Real[Tensor, "c h w"]) -> Real[Tensor, "c h2 w2"]:
        """Transforms a decoded image."""
        return self.from_picture(DecodedImage(image))

    def from_picture(self, picture: LazyImage) -> Real[Tensor, "c h2 w2"]:
        """Transforms an image that may not be decoded yet."""
        image = self.crop(picture)
        for step in self.steps:
            image = step(image)
        return image


class RandomCrop(nn.Module):
    """The crops of torchvision's RandomResizedCrop: exactly the same for the same random state.

    torchvision takes a tenth of a photograph's decoding time to draw a crop; this is faster.
    """

    def __init__(
        self,
        size: Pair,
        scale: Sequence[float],
        ratio: Sequence[float],
        interpolation: Interpolation = "bicubic",
    ) -> None:
        super().__init__()
        self.interpolation = interpolation
        self.size = size
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)
        self._log_ratio = torch.log(torch.tensor(self.ratio)).tolist()

    def choose(self, height: int, width: int) -> Box:
        """Draws a crop: its area, aspect ratio and position."""
        drawn = torch.empty(1)
        for _ in range(10):
            area = height * width * drawn.uniform_(*self.scale).item()
            shape = drawn.uniform_(*self._log_ratio).exp_().item()
            box_width, box_height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if 0 < box_width <= width and 0 < box_height <= height:
                top = int(torch.randint(height - box_height + 1, (1,)))
                left = int(torch.randint(width - box_width + 1, (1,)))
                return Box(top, left, box_height, box_width)
        # No crop fits, because the image is too long: takes the largest one in its centre.
        shape = min(max(width / height, min(self.ratio)), max(self.ratio))
        box_height = min(height, round(width / shape))
        box_width = min(width, round(height * shape))
        return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)

    def forward(self, picture: LazyImage) -> Real[Tensor, "c h w"]:
        """Draws a crop and resizes it."""
        box = self.choose(picture.height, picture.width)
        return picture.crop_resized(box, self.size, self.interpolation)


class CenterCrop(nn.Module):
    """The centre of an image at the target size: how held-out images are shown.

    The image is resized (bicubic, antialiased) to just contain the target size divided by
    `crop_ratio`, and the centre is cropped: with 1 this is the largest possible crop, with 0.875
    that of Swin's official evaluation. With `squash` the whole image is resized to the target size,
    which changes its aspect ratio.

    It is not a `CroppingTransform`: validation metrics are for images that were decoded in full.

    Raises:
        UserError: a ratio outside [0.1, 1], or one together with `squash`, which does not crop.
    """

    def __init__(
        self, image_size: Size, crop_ratio: float | None = None, squash: bool | None = None
    ) -> None:
        super().__init__()
        self.size: Pair = as_pair(image_size, "model.image_size")
        self.squash = bool(squash)
        self.crop_ratio = ratio = 1.0 if crop_ratio is None else float(crop_ratio)
        if not 0.1 <= ratio <= 1:
            raise UserError(
                f"data.crop_ratio {crop_ratio} is not in [0.1, 1]; use 0.875, or 1 for the largest crop"
            )
        if self.squash and ratio != 1:
            raise UserError(
                f"data.squash=true shows whole images and data.crop_ratio {crop_ratio} their middle; "
                "leave one of them out"
            )
        # The size that an image of the same aspect ratio is resized to before the crop.
        self.around = (math.floor(self.size[0] / ratio), math.floor(self.size[1] / ratio))

    def resized(self, height: int, width: int) -> Pair:
        """The size that an image of this height and width is resized to before the crop."""
        if self.squash:
            return self.size
        # In integers and rounded down, as in torchvision's Resize.
        around_height, around_width = self.around
        if around_height * width >= around_width * height:
            return around_height, around_height * width // height
        return around_width * height // width, around_width

    def choose(self, height: int, width: int) -> Box:
        """The part of an image of this size that is shown, rounded to whole pixels."""
        if self.squash:
            return Box(0, 0, height, width)
        scale = min(height / self.around[0], width / self.around[1])
        box_height = max(1, round(self.size[0] * scale))
        box_width = max(1, round(self.size[1] * scale))
        top, left = round((height - box_height) / 2), round((width - box_width) / 2)
        return Box(top, left, box_height, box_width)

    def forward(self, image: Real[Tensor, "c h w"]) -> Real[Tensor, "c h2 w2"]:
        """Resizes and crops, without randomness."""
        height, width = self.resized(*image.shape[-2:])
        top, left = round((height - self.size[0]) / 2), round((width - self.size[1]) / 2)
        resized = resize(image[None], (height, width))[0]
        return resized[:, top : top + self.size[0], left : left + self.size[1]].contiguous()


class RandomFlip(nn.Module):
    """A horizontal flip, with a probability."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def choose(self) -> bool:
        """Draws whether an image is flipped."""
        return torch.rand(1).item() < self.probability

    def forward(self, image: Real[Tensor, "c h w"]) -> Real[Tensor, "c h w"]:
        """Flips one image."""
        return image.flip(-1) if self.choose() else image


class RandAugment(nn.Module):
    """A policy of timm on uint8 tensors, with the options of `create_policy`."""

    def __init__(self, policy: str, image_size: Size) -> None:
        super().__init__()
        self.policy = create_policy(policy, as_pair(image_size, "model.image_size"))

    def forward(self, image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h w"]:
        """Augments one image."""
        if image.dtype != torch.uint8:
            raise UserError(
                "augmentation.rand_augment changes the colours of 8-bit pictures and the data holds "
                "other values; use augmentation.rand_augment=null"
            )
        return F.pil_to_tensor(self.policy(F.to_pil_image(image)))


class NoiseErasing(nn.Module):
    """Fills a random rectangle (2% to a third of the area) with noise, with a probability."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.rectangle = v2.RandomErasing(value="random")

    def forward(self, image: Real[Tensor, "c h w"]) -> Real[Tensor, "c h w"]:
        """Erases from one image."""
        if torch.rand(1).item() >= self.probability:
            return image
        drawn = self.rectangle.make_params([image])
        if drawn["v"] is None:  # no rectangle fitted into a narrow image
            return image
        noise: Tensor = drawn[
            "v"
        ]  # of the rectangle's size, with the variance of a normalised image
        if image.dtype == torch.uint8:
            noise = (noise * 57 + 114).clamp(0, 255).to(torch.uint8)
        else:
            # Floats have their own units: uses the image's mean and standard deviation.
            std, mean = torch.std_mean(image, dim=(1, 2), keepdim=True)
            noise = noise * std + mean
        erased = image.clone()
        top, left = drawn["i"], drawn["j"]
        erased[:, top : top + noise.shape[1], left : left + noise.shape[2]] = noise
        return erased
