"""A model in parts on many devices (FSDP2), and whole again."""

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from simmim.encoder.blocks import Stage
from simmim.models import Classifier, SimMIM


def shard(model: SimMIM | Classifier, mesh: DeviceMesh) -> None:
    """Shares the weights out over `mesh`: each block is whole only while it computes.

    What stands between blocks is sharded by itself, so that an encoder also runs without its head.
    A model that is sharded stays as it is.
    """
    if isinstance(model, FSDPModule):
        return
    encoder = model.encoder
    parts: list[nn.Module] = [encoder.patch_embedding, encoder.norm]
    for stage in encoder.stages:
        assert isinstance(stage, Stage)
        parts += [stage.merging, *stage.blocks]
    for part in parts:
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """The whole state dict on the CPU, however the model is shared out; empty but on rank 0.

    Every process has to call it.
    """
    whole = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return {name: value for name, value in whole.items() if isinstance(value, Tensor)}
