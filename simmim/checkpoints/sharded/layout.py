"""The files by which an FSDP run's checkpoint is known: PyTorch's index, and Lightning's own state."""

from pathlib import Path

INDEX = ".metadata"
REST = "meta.pt"


def is_distributed(path: Path) -> bool:
    """Whether the path is the folder that an FSDP run wrote."""
    return (path / INDEX).is_file() and (path / REST).is_file()
