"""simmim: SimMIM pretraining, fine-tuning and resolution transfer of Swin Transformer encoders.

Names are imported lazily, so that the command line responds without importing torch.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simmim.checkpoints.model_file import (
        load_classifier,
        load_encoder,
        save_classifier,
        save_encoder,
    )
    from simmim.models.swin import create_encoder
    from simmim.tasks.load_model import load_model
    from simmim.utils.normalization import Normalisation

try:
    __version__ = version("simmim")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

# Approximate start of this process, so that a run can report how long its start-up took.
STARTED = monotonic()

_HOME = {
    "Normalisation": "simmim.utils.normalization",
    "create_encoder": "simmim.models.swin",
    "load_classifier": "simmim.checkpoints.model_file",
    "load_encoder": "simmim.checkpoints.model_file",
    "load_model": "simmim.tasks.load_model",
    "save_classifier": "simmim.checkpoints.model_file",
    "save_encoder": "simmim.checkpoints.model_file",
}

__all__ = [
    "Normalisation",
    "create_encoder",
    "load_classifier",
    "load_encoder",
    "load_model",
    "save_classifier",
    "save_encoder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'simmim' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
