"""`summary.json`: the results of a run, for people and programs to read."""

import importlib.metadata
import math
import platform
import subprocess
from pathlib import Path
from typing import Any

import simmim
from simmim.utils.files import as_json, written_beside

_PACKAGES = ("simmim", "torch", "torchvision", "pytorch-lightning", "hydra-core", "timm", "numpy")


def write_summary(path: str | Path, content: dict[str, Any]) -> dict[str, Any]:
    """Writes the content with the git revision and package versions; returns all of it.

    Numbers that JSON cannot hold (nan, infinite) become null.
    """
    summary = content | {
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "packages": package_versions(),
    }
    finite = _finite(summary)
    with written_beside(path) as beside:
        beside.write_text(as_json(finite) + "\n")
    assert isinstance(finite, dict)
    return finite


def git_revision() -> str | None:
    """Revision of the checkout that simmim runs from, `-dirty` if changed; None elsewhere."""
    home = Path(simmim.__file__).parent.parent
    if not (home / ".git").exists():  # an installed wheel within another project's checkout
        return None
    described = subprocess.run(
        ["git", "-C", str(home), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None


def package_versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return versions


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
