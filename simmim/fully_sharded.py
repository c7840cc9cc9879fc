"""FSDP2 as Lightning runs it, over all devices of a run."""

from itertools import chain
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from simmim.checkpoints.distributed import load_parts
from simmim.checkpoints.sharded import is_distributed, name_parameters, read_rest


class FullySharded(ModelParallelStrategy):
    """Shares weights, gradients and optimiser states out; `configure_model` of the task shards.

    A checkpoint is one file with everything, as under any other strategy, or, with
    `save_distributed_checkpoint`, a folder to which each process writes its own part. Both load at any
    number of devices.
    """

    def setup_environment(self) -> None:
        """Makes all devices one mesh of data parallelism."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Loads weights and optimiser states, and returns the rest.

        Lightning's own would take a file's optimiser states to be numbered in the order of the model's
        parameters; they are in that of the optimiser's groups.
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
