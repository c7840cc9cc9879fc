"""The files that identify an FSDP checkpoint: PyTorch's index, and Lightning's own state."""

from pathlib import Path

INDEX = ".metadata"
REST = "meta.pt"


def is_distributed(path: Path) -> bool:
    """Whether the path is the folder of an FSDP checkpoint."""
    return (path / INDEX).is_file() and (path / REST).is_file()
