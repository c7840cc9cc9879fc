"""The peak memory of a whole model's training step, combined from traces of its segments."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim.models.classifier import HeadedEncoder
from simmim.models.losses import masked_l1
from simmim.models.masking import enlarge
from simmim.models.simmim import SimMIM
from simmim.models.swin.blocks import Stage, SwinBlock
from simmim.plan.tracer import Arithmetic, Passed, Segment, SegmentTrace, trace_segment

# Bytes per image value: uint8 as loaded, and float32 as the model takes it.
_IMAGE_BYTES = 1 + 4


class StepNeeds(NamedTuple):
    """What one forward and backward pass needs besides weights, optimiser states and all gradients.

    Attributes:
        activations: peak bytes.
        largest_segment: peak bytes of the largest segment by itself.
        forward_flops, backward_flops, recomputed_flops: per image.
    """

    activations: int
    largest_segment: int
    forward_flops: float
    backward_flops: float
    recomputed_flops: float


@dataclass
class StepTracer:
    """Traces steps of one model on the meta device; equal segments are traced only once.

    As in Lightning, gradients of the previous step exist until the forward pass is over; with
    `keeps_gradients`, gradients always exist.
    """

    model: SimMIM | HeadedEncoder
    arithmetic: Arithmetic
    keeps_gradients: bool = False
    _known: dict[tuple[object, ...], SegmentTrace] = field(default_factory=dict)

    def trace(self, batch_size: int, checkpointed_blocks: Sequence[int] | None = None) -> StepNeeds:
        """Traces a step with this many images on one device.

        `checkpointed_blocks` of each stage are recomputed (None: as set in the model).
        """
        traces = []
        encoder = self.model.encoder
        images = torch.Size((batch_size, encoder.in_channels, *encoder.image_size))
        taken = Passed(images, self.arithmetic.weights, has_gradient=False)
        for segment, kind in segments(
            self.model, checkpointed_blocks or encoder.checkpointed_blocks
        ):
            key = (*kind, taken)
            if key not in self._known:
                self._known[key] = trace_segment(
                    segment,
                    taken,
                    self.arithmetic,
                    keeps_gradients=self.keeps_gradients,
                    float32_parameters=self._float32_parameters,
                )
            traces.append(self._known[key])
            taken = traces[-1].output
        return _add_up(traces, self.model, batch_size)

    @cached_property
    def _float32_parameters(self) -> list[nn.Parameter]:
        return [
            parameter
            for name, parameter in self.model.named_parameters()
            if "position_bias" in name
        ]


def _add_up(
    traces: Sequence[SegmentTrace], model: SimMIM | HeadedEncoder, batch_size: int
) -> StepNeeds:
    height, width = model.encoder.image_size
    images = batch_size * model.encoder.in_channels * height * width * _IMAGE_BYTES

    moments, held = [], images
    for trace in traces:
        moments.append(held + trace.forward_peak)
        held += trace.held
    kept = images + sum(trace.kept for trace in traces)
    # Unless gradients accumulate, backward starts without any and creates them one by one.
    missing = sum(trace.gradients for trace in traces)
    for trace in reversed(traces):
        kept -= trace.kept
        # The segment's own peak includes the gradients that it creates.
        moments.append(kept + trace.backward_peak - missing)
        missing -= trace.gradients
    return StepNeeds(
        max(moments),
        max(max(trace.forward_peak, trace.backward_peak) for trace in traces),
        sum(trace.forward_flops for trace in traces) / batch_size,
        sum(trace.backward_flops for trace in traces) / batch_size,
        sum(trace.recomputed_flops for trace in traces) / batch_size,
    )


def segments(
    model: SimMIM | HeadedEncoder, checkpointed_blocks: Sequence[int]
) -> Iterator[tuple[Segment, tuple[object, ...]]]:
    """The model from images to loss as a chain of segments, each with a key of its kind."""
    first = _segment(_first(model), model.encoder.patch_embedding, *_own(model))
    yield first._replace(owns_input=False), ("first",)
    for number, stage in enumerate(model.encoder.stages):
        assert isinstance(stage, Stage)
        if not isinstance(stage.merging, nn.Identity):
            yield _segment(stage.merging, stage.merging), ("merging", number)
        for place, block in enumerate(stage.blocks):
            assert isinstance(block, SwinBlock)
            is_recomputed = place < checkpointed_blocks[number]
            alone = Stage(None, [block], int(is_recomputed))
            yield _segment(alone, block), (number, is_recomputed, *_kind(block))
    yield _segment(_last(model), model.encoder.norm, model.head), ("last",)


def _segment(function: Callable[[Tensor], Tensor], *parts: nn.Module | nn.Parameter) -> Segment:
    parameters: list[nn.Parameter] = []
    for part in parts:
        parameters += [part] if isinstance(part, nn.Parameter) else part.parameters()
    return Segment(function, tuple(parameters))


def _kind(block: SwinBlock) -> tuple[object, ...]:
    """The properties of a block that its memory depends on within its stage."""
    return block.grid, block.mask is None, type(block.norm3), block.drop_path.drops, block.training


def _own(model: SimMIM | HeadedEncoder) -> tuple[nn.Parameter, ...]:
    return (model.mask_token,) if isinstance(model, SimMIM) else ()


def _first(model: SimMIM | HeadedEncoder) -> Callable[[Tensor], Tensor]:
    """The function from images to tokens."""
    if isinstance(model, HeadedEncoder):
        return model.encoder.embed
    return lambda images: model.embed(images, _token_mask(model, len(images)))


def _last(model: SimMIM | HeadedEncoder) -> Callable[[Tensor], Tensor]:
    """The function from the last stage's tokens to the loss.

    For SimMIM, it predicts whole images; training predicts only squares with masked pixels.
    """
    encoder = model.encoder

    def masked(tokens: Tensor) -> Tensor:
        size = (len(tokens), encoder.in_channels, *encoder.image_size)
        pixels = enlarge(_token_mask(model, len(tokens)), encoder.patch_size)
        prediction = model.head(encoder.norm(tokens))
        return masked_l1(prediction, torch.empty(size, device=tokens.device), pixels)

    def labelled(tokens: Tensor) -> Tensor:
        logits = model.head(encoder.norm(tokens)).float()
        return F.cross_entropy(logits, torch.empty_like(logits))

    return masked if isinstance(model, SimMIM) else labelled


def _token_mask(model: SimMIM | HeadedEncoder, count: int) -> Tensor:
    size = (count, *model.encoder.feature_sizes[0])
    return torch.empty(size, dtype=torch.bool, device="meta")
