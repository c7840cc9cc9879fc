"""Workloads to measure: one step of a model on images of a given size."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simmim.models.masking import RandomMaskGenerator
from simmim.models.swin import ARCHITECTURES
from simmim.utils.devices import computes_in_bf16
from simmim.utils.errors import UserError

Kind = Literal["simmim", "classification", "inference"]
Precision = Literal["float32", "bf16"]

CLASSES = 1000
MASK_PATCH = 32


class Workload(NamedTuple):
    """A step: forward, loss and backward (`simmim`, `classification`), or forward (`inference`).

    `model` is the name of a Swin V2; the mask is the paper's: 60% of patches of 32 pixels.
    """

    kind: Kind
    image_size: int
    window_size: int
    model: str
    batch_size: int

    @property
    def name(self) -> str:
        """The name as in the option `rows`, for example `simmim-192-12`."""
        return f"{self.kind}-{self.image_size}-{self.window_size}"

    @property
    def architecture(self) -> dict[str, Any]:
        """The architecture's arguments, such as channels, depths and heads."""
        return ARCHITECTURES[self.model]

    @property
    def masks(self) -> RandomMaskGenerator:
        """The paper's masks for these images."""
        return RandomMaskGenerator(self.image_size, MASK_PATCH)


class Inputs(NamedTuple):
    """Inputs of all implementations: normalised images, a mask with one entry per token, labels."""

    images: Float[Tensor, "b 3 H W"]
    mask: Bool[Tensor, "b h w"] | None
    labels: Int[Tensor, " b"]


def parse_row(row: str, model: str, batch_size: int) -> Workload:
    """Parses a row such as `simmim-192-12`: kind, image size and window size.

    Raises:
        UserError: an invalid format, or an unknown kind or model.
    """
    kind, *sizes = row.split("-")
    if kind not in get_args(Kind) or len(sizes) != 2 or not all(size.isdigit() for size in sizes):
        kinds = ", ".join(get_args(Kind))
        raise UserError(f"rows={row} is no kind-image-window with {kinds}; use simmim-192-12")
    if not model.startswith("swinv2_") or ARCHITECTURES.get(model, {}).get("patch_size", 4) != 4:
        raise UserError(f"models={model} has no peers; use swinv2_t, swinv2_s, swinv2_b or larger")
    if model not in ARCHITECTURES:
        raise UserError(f"models={model} is unknown; use one of {', '.join(ARCHITECTURES)}")
    return Workload(kind, int(sizes[0]), int(sizes[1]), model, batch_size)  # type: ignore[arg-type]


def draw_inputs(work: Workload, device: torch.device) -> Inputs:
    """Random inputs: the content of images does not affect the time."""
    generator = torch.Generator().manual_seed(0)
    shape = (work.batch_size, 3, work.image_size, work.image_size)
    images = torch.randn(shape, generator=generator).to(device)
    labels = torch.randint(CLASSES, (work.batch_size,), generator=generator).to(device)
    mask = None
    if work.kind == "simmim":
        mask = work.masks(torch.arange(work.batch_size, device=device), step=0)
    return Inputs(images, mask, labels)


def available_precisions(device: torch.device, wanted: Sequence[str]) -> list[Precision]:
    """The requested precisions; `auto` is float32, and bf16 if the device supports it."""
    for precision in wanted:
        if precision not in ("auto", *get_args(Precision)):
            raise UserError(f"precisions={precision} is unknown; use auto, float32 or bf16")
    if "auto" not in wanted:
        return [precision for precision in get_args(Precision) if precision in wanted]
    has_bf16 = (
        computes_in_bf16()
        if device.type == "cuda"
        else bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
    return ["float32", "bf16"] if has_bf16 else ["float32"]
