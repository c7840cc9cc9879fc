"""The official code for the parity tests: `pytest --official PATH`, else skipped."""

import importlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """On busy cores, waiting for each other's threads takes several times as long as the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def official(request: pytest.FixtureRequest) -> Callable[[str], types.ModuleType]:
    """Imports a module of the official `models` folder by name, and nothing else of that folder."""
    path = request.config.getoption("--official", default=None)
    if path is None:
        pytest.skip("needs --official PATH, a work tree of microsoft/Swin-Transformer")
    folder = Path(path) / "models"
    assert folder.is_dir(), f"{folder} is no folder"
    # Under a name of its own: `models` says little, and its __init__ imports more than is needed.
    package = types.ModuleType("official_swin")
    package.__path__ = [str(folder)]
    sys.modules["official_swin"] = package
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _provide_old_timm_layers()
        return {
            name: importlib.import_module(f"official_swin.{name}")
            for name in ("swin_transformer", "swin_transformer_v2", "simmim")
        }.__getitem__


def _provide_old_timm_layers() -> None:
    """`timm.models.layers`, which the official code imports and timm means to remove."""
    try:
        importlib.import_module("timm.models.layers")
    except ImportError:
        sys.modules["timm.models.layers"] = importlib.import_module("timm.layers")
