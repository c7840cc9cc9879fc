"""PyTorch's distributed checkpoints (`torch.distributed.checkpoint`), as FSDP writes them.

PyTorch's own readers unpickle anything in a file; these read weights and numbers only.
"""

import io
import pickle
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

from simmim.checkpoints.sharded.layout import INDEX

# All classes in the index of a distributed checkpoint, beside PyTorch's dtypes.
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


def load_parts(state: dict[str, Any], path: Path) -> None:
    """Loads into the tensors of `state`, of which each process holds a part; all processes call it."""
    load(state, storage_reader=_Reader(path), planner=_Planner())


def read_parts(path: Path) -> dict[str, Any]:
    """Weights and optimiser states, merged from all parts.

    Raises:
        Exception: of many types, for a folder that is damaged or holds more than weights.
    """
    whole: dict[str, Any] = {}
    reader = _Reader(path)
    # PyTorch reads it again; from some versions, its error would not say why it cannot be read.
    reader.read_metadata()
    planner = _WholePlanner()  # type: ignore[no-untyped-call]
    try:
        _load_state_dict(whole, storage_reader=reader, planner=planner, no_dist=True)
    except CheckpointException as error:  # not an Exception; has the failures inside
        failures = [failure for failure, _ in error.failures.values()]
        raise ValueError(str(failures[0] if failures else error)) from error
    return whole


class _Unpickler(pickle.Unpickler):
    """Unpickles nothing but the classes of an index."""

    def find_class(self, module: str, name: str) -> Any:
        # Where Python 3.13 has its paths; other versions do not have that module.
        module = module.removesuffix("._local")
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and (module, name) not in _INDEX_NAMES:
            raise pickle.UnpicklingError(f"its index names {module}.{name}, which is no weight")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    """Reads the index with `_Unpickler`."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata: Metadata = _Unpickler(io.BytesIO((Path(self.path) / INDEX).read_bytes())).load()
        return metadata


class _WeightsOnly(DefaultLoadPlanner):
    """Reads what is not a tensor with `weights_only=True`: numbers, strings, and lists of them."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        plain = torch.load(value, weights_only=True)
        buffer = io.BytesIO()
        torch.save(plain, buffer)
        buffer.seek(0)
        super().load_bytes(read_item, buffer)


class _Planner(_WeightsOnly):
    """Loads into an existing state dict."""


class _WholePlanner(_WeightsOnly, _EmptyStateDictLoadPlanner):
    """Loads into a state dict built from the index."""
