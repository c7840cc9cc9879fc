"""Sharded checkpoints: a folder in which each process of a run wrote its own part.

FSDP's are PyTorch's distributed checkpoints (`torch.distributed.checkpoint`) beside Lightning's
`meta.pt`. PyTorch's own readers unpickle whatever a file says; these read weights and numbers only.
"""

import io
import pickle
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    _EmptyStateDictLoadPlanner,
)
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict, load

from simmim.checkpoints.deepspeed import is_deepspeed, read_deepspeed, read_optimizer
from simmim.errors import UserError

_INDEX = ".metadata"
_REST = "meta.pt"
# All that the index of a distributed checkpoint is made of, beside PyTorch's dtypes.
_METADATA = "torch.distributed.checkpoint.metadata"
_INDEX_NAMES = {
    (_METADATA, "Metadata"),
    (_METADATA, "MetadataIndex"),
    (_METADATA, "TensorStorageMetadata"),
    (_METADATA, "TensorProperties"),
    (_METADATA, "ChunkStorageMetadata"),
    (_METADATA, "BytesStorageMetadata"),
    (_METADATA, "StorageMeta"),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
}


def is_distributed(path: Path) -> bool:
    """Whether the path is the folder that an FSDP run wrote."""
    return (path / _INDEX).is_file() and (path / _REST).is_file()


def is_sharded(path: Path) -> bool:
    """Whether the path is a folder that the processes of a run wrote together."""
    return is_distributed(path) or is_deepspeed(path)


def read_rest(path: Path, *, map_location: str = "cpu") -> dict[str, Any]:
    """What a sharded checkpoint says beside weights and optimiser: loops, callbacks, the encoder."""
    if is_deepspeed(path):
        return read_deepspeed(path, map_location=map_location)
    rest: dict[str, Any] = torch.load(path / _REST, map_location=map_location, weights_only=True)
    return rest


def load_parts(state: dict[str, Any], path: Path) -> None:
    """Fills the tensors of `state`, of which each process holds a part; all processes call it."""
    load(state, storage_reader=_Reader(path), planner=_Planner())


def read_whole(path: Path) -> dict[str, Any]:
    """The checkpoint as one that a single process writes, with the optimiser's states numbered.

    Raises:
        UserError: a folder that is damaged, or that holds more than weights and numbers.
    """
    try:
        return _whole_deepspeed(path) if is_deepspeed(path) else _whole_distributed(path)
    except (CheckpointException, Exception) as error:  # many kinds for a damaged or foreign file
        cause: BaseException = error
        if isinstance(error, CheckpointException) and error.failures:
            cause = next(iter(error.failures.values()))[0]
        first_line = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise UserError(
            f"{path} is damaged or no checkpoint ({first_line}); copy or write it again"
        ) from error


def _whole_distributed(path: Path) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    planner = _WholePlanner()  # type: ignore[no-untyped-call]
    _load_state_dict(whole, storage_reader=_Reader(path), planner=planner, no_dist=True)
    optimizers = sorted(name for name in whole if name.startswith("optimizer_"))
    return {
        **read_rest(path),
        "state_dict": whole["state_dict"],
        "optimizer_states": [number_parameters(whole[name]) for name in optimizers],
    }


def _whole_deepspeed(path: Path) -> dict[str, Any]:
    content = read_deepspeed(path)
    # What Lightning added for itself; the rest is DeepSpeed's.
    added = ("epoch", "global_step", "pytorch-lightning_version", "loops", "callbacks")
    ours = ("lr_schedulers", "encoder", "classes")
    return {
        **{name: content[name] for name in (*added, *ours) if name in content},
        "state_dict": content["module"],
        "optimizer_states": [number_parameters(read_optimizer(path, content["param_shapes"]))],
    }


def number_parameters(state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimiser's state by name, as PyTorch keeps it: parameters numbered in order of groups."""
    names = list(chain.from_iterable(group["params"] for group in state["param_groups"]))
    return _renamed(state, {name: number for number, name in enumerate(names)})


def name_parameters(state: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """An optimiser's numbered state by name; `names` are the parameters' in order of groups."""
    numbers = chain.from_iterable(group["params"] for group in state["param_groups"])
    return _renamed(state, dict(zip(numbers, names, strict=True)))


def _renamed(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        "state": {names[old]: value for old, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [names[old] for old in group["params"]]}
            for group in state["param_groups"]
        ],
    }


class _Unpickler(pickle.Unpickler):
    """Makes nothing but what an index is made of."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and (module, name) not in _INDEX_NAMES:
            raise pickle.UnpicklingError(f"its index names {module}.{name}, which is no weight")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    """Reads the index with `_Unpickler`."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata: Metadata = _Unpickler(io.BytesIO((Path(self.path) / _INDEX).read_bytes())).load()
        return metadata


class _WeightsOnly(DefaultLoadPlanner):
    """Reads what is no tensor as weights are read: numbers, strings, and lists of them."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        plain = torch.load(value, weights_only=True)
        buffer = io.BytesIO()
        torch.save(plain, buffer)
        buffer.seek(0)
        super().load_bytes(read_item, buffer)


class _Planner(_WeightsOnly):
    """Into a state that is there."""


class _WholePlanner(_WeightsOnly, _EmptyStateDictLoadPlanner):
    """Into a state made from the index."""
