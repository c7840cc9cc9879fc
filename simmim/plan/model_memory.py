"""What one device holds of a model whatever the batch: as each strategy shares it out."""

from typing import Literal, NamedTuple

from torch import nn

from simmim.models.classifier import Classifier
from simmim.models.simmim import SimMIM
from simmim.models.swin.blocks import Stage

Sharing = Literal["none", "ddp", "fsdp", "deepspeed_zero1"]

_FLOAT32 = 4

# Elements of a bucket of gradients that DeepSpeed reduces at a time: its default.
_DEEPSPEED_BUCKET = 500_000_000


class StaticMemory(NamedTuple):
    """Bytes on one device.

    Attributes:
        weights: parameters and tables.
        gradients: of all trained parameters.
        optimizer_states: AdamW's two moments; with ZeRO also its own copy of the weights.
        average: the moving average of the weights.
        buffers: what the strategy needs to bring shared-out parts together.
        optimizer_step: what AdamW makes while it steps.
        checkpoint: in the machine's memory, before it is written.
    """

    weights: int
    gradients: int
    optimizer_states: int
    average: int
    buffers: int
    optimizer_step: int
    checkpoint: int


def static_memory(
    model: SimMIM | Classifier,
    sharing: Sharing,
    world_size: int,
    *,
    largest_group: int,
    is_fused: bool,
    has_average: bool,
) -> StaticMemory:
    """What each of `world_size` devices holds; weights are float32 under every strategy.

    Args:
        model: on the meta device.
        sharing: who holds what.
        world_size: devices of all nodes.
        largest_group: numbers in the largest of the optimiser's parameter groups.
        is_fused: AdamW steps on a whole group at once, as on CUDA, not one parameter after the other.
        has_average: a moving average of the weights is kept.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tables = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    trained = sum(sizes)
    shares = world_size if sharing == "fsdp" else 1
    states, buffers = 2 * trained, 0
    if sharing == "fsdp":
        # Whole at a time: the block that computes, the next one on its way and where it arrives; and
        # the block's gradients as they leave.
        buffers = 4 * largest_block(model)
    elif sharing == "deepspeed_zero1":
        states = 3 * trained
        # One bucket fills while the other is reduced.
        buffers = 2 * _DEEPSPEED_BUCKET
    owners = world_size if sharing in ("fsdp", "deepspeed_zero1") else 1
    # One root of the second moments for each number, or two temporaries of a parameter at a time.
    step = largest_group if is_fused else 2 * max(sizes, default=0)
    return StaticMemory(
        weights=-(-parameters // shares) * _FLOAT32 + tables,
        gradients=-(-trained // shares) * _FLOAT32,
        optimizer_states=-(-states // owners) * _FLOAT32,
        average=-(-parameters // shares) * _FLOAT32 if has_average else 0,
        buffers=buffers * _FLOAT32,
        optimizer_step=-(-step // owners) * _FLOAT32,
        # Lightning writes it into memory first; the weights of a finished run are whole on one device.
        checkpoint=max(-(-(parameters + 2 * trained) // shares), parameters) * _FLOAT32,
    )


def largest_block(model: SimMIM | Classifier) -> int:
    """Numbers in the largest part that FSDP makes whole at once."""
    parts: list[nn.Module] = [model.encoder.patch_embedding, model.head]
    for stage in model.encoder.stages:
        assert isinstance(stage, Stage)
        parts += [stage.merging, *stage.blocks]
    return max(sum(parameter.numel() for parameter in part.parameters()) for part in parts)
