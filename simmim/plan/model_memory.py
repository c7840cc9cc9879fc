"""Memory of a model on one device that does not depend on the batch, for each sharding strategy."""

from typing import Literal, NamedTuple

from torch import nn

from simmim.models.classifier import HeadedEncoder
from simmim.models.simmim import SimMIM
from simmim.models.swin.blocks import Stage

Sharing = Literal["none", "ddp", "fsdp", "deepspeed_zero1"]

_FLOAT32 = 4

# Elements of a gradient bucket that DeepSpeed reduces at a time (its default).
_DEEPSPEED_BUCKET = 500_000_000


class StaticMemory(NamedTuple):
    """Bytes on one device.

    Attributes:
        weights: parameters and tables.
        gradients: of all trained parameters.
        optimizer_states: AdamW's two moments; with ZeRO also its own copy of the weights.
        average: the moving average of the weights.
        buffers: what the strategy needs to gather or reduce sharded parts.
        optimizer_step: temporaries of AdamW's step.
        checkpoint: a checkpoint in host memory before it is written.
    """

    weights: int
    gradients: int
    optimizer_states: int
    average: int
    buffers: int
    optimizer_step: int
    checkpoint: int


def static_memory(
    model: SimMIM | HeadedEncoder,
    sharing: Sharing,
    world_size: int,
    *,
    largest_group: int,
    is_fused: bool,
    has_average: bool,
) -> StaticMemory:
    """The memory on each of `world_size` devices; weights are float32 under every strategy.

    Args:
        model: on the meta device.
        sharing: the sharding strategy.
        world_size: number of devices over all nodes.
        largest_group: number of elements in the optimiser's largest parameter group.
        is_fused: AdamW updates a whole group at once, as on CUDA, not one parameter at a time.
        has_average: a moving average of the weights is kept.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tables = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    trained = sum(sizes)
    shares = world_size if sharing == "fsdp" else 1
    states, buffers = 2 * trained, 0
    if sharing == "fsdp":
        # Unsharded at the same time: the block being computed, the next one's communication buffer
        # and gathered weights, and the block's gradients while they are reduced.
        buffers = 4 * largest_block(model)
    elif sharing == "deepspeed_zero1":
        states = 3 * trained
        # One bucket is filled while the other is reduced.
        buffers = 2 * _DEEPSPEED_BUCKET
    owners = world_size if sharing in ("fsdp", "deepspeed_zero1") else 1
    # The square roots of a whole group's second moments, or two temporaries for one parameter.
    step = largest_group if is_fused else 2 * max(sizes, default=0)
    return StaticMemory(
        weights=-(-parameters // shares) * _FLOAT32 + tables,
        gradients=-(-trained // shares) * _FLOAT32,
        optimizer_states=-(-states // owners) * _FLOAT32,
        average=-(-parameters // shares) * _FLOAT32 if has_average else 0,
        buffers=buffers * _FLOAT32,
        optimizer_step=-(-step // owners) * _FLOAT32,
        # Lightning serialises it in memory first; a finished run gathers all weights on one device.
        checkpoint=max(-(-(parameters + 2 * trained) // shares), parameters) * _FLOAT32,
    )


def largest_block(model: SimMIM | HeadedEncoder) -> int:
    """The number of elements in the largest part that FSDP unshards at once."""
    parts: list[nn.Module] = [model.encoder.patch_embedding, model.head]
    for stage in model.encoder.stages:
        assert isinstance(stage, Stage)
        parts += [stage.merging, *stage.blocks]
    return max(sum(parameter.numel() for parameter in part.parameters()) for part in parts)
