"""FSDP2 over all devices of a run, as a Lightning strategy."""

from itertools import chain
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from simmim.checkpoints.sharded.dcp import load_parts
from simmim.checkpoints.sharded.layout import is_distributed
from simmim.checkpoints.sharded.merge import name_parameters, read_rest
from simmim.models.classifier import HeadedEncoder
from simmim.models.simmim import SimMIM
from simmim.models.swin.blocks import Stage


class FullySharded(ModelParallelStrategy):
    """Shards weights, gradients and optimiser states; the task's `configure_model` calls `shard`.

    A checkpoint is one file with everything, as under any other strategy, or, with
    `save_distributed_checkpoint`, a folder to which each process writes its own part. Both can be
    loaded on any number of devices.
    """

    def setup_environment(self) -> None:
        """Puts all devices into the data-parallel dimension of the mesh."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Loads weights and optimiser states, and returns the rest.

        Lightning's own method assumes that a file numbers optimiser states in the order of the
        model's parameters; here they are in the order of the optimiser's parameter groups.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        return self._load_folder(path) if is_distributed(path) else self._load_file(path)

    def _load_folder(self, path: Path) -> dict[str, Any]:
        model = self.lightning_module
        assert model is not None
        weights = {"state_dict": get_model_state_dict(model)}
        load_parts(weights, path)
        set_model_state_dict(model, weights["state_dict"])
        for number, optimizer in enumerate(self.optimizers):
            state = {f"optimizer_{number}": get_optimizer_state_dict(model, optimizer)}
            load_parts(state, path)
            set_optimizer_state_dict(model, optimizer, state[f"optimizer_{number}"])
        return read_rest(path)

    def _load_file(self, path: Path) -> dict[str, Any]:
        model = self.lightning_module
        assert model is not None
        content: dict[str, Any] = torch.load(path, mmap=True, map_location="cpu", weights_only=True)
        whole = StateDictOptions(full_state_dict=True)
        set_model_state_dict(model, content.pop("state_dict"), options=whole)
        known = {parameter: name for name, parameter in model.named_parameters()}
        for optimizer, state in zip(
            self.optimizers, content.pop("optimizer_states", []), strict=False
        ):
            in_order = chain.from_iterable(group["params"] for group in optimizer.param_groups)
            named = name_parameters(state, [known[parameter] for parameter in in_order])
            set_optimizer_state_dict(model, optimizer, named, options=whole)
        return content


def shard(model: SimMIM | HeadedEncoder, mesh: DeviceMesh) -> None:
    """Shards the model over `mesh` (FSDP2): each block's weights are gathered while it computes.

    Modules between the blocks are sharded separately, so that the encoder also runs without its
    head. A model that is already sharded stays as it is.
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
    """Gathers the full state dict of `model` on rank 0's CPU; empty on other ranks.

    Every process has to call it.
    """
    whole = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return {name: value for name, value in whole.items() if isinstance(value, Tensor)}
