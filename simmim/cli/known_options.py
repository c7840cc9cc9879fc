"""The options that exist, read from `conf/` without importing torch."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import yaml
from omegaconf import OmegaConf


def config_directory() -> Path:
    """`conf/`: inside the package if installed from a wheel, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def option_names(stage: str) -> Iterator[str]:
    """Dotted names of all options of a stage, with the default choice of each group."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_directory())):
        config = OmegaConf.to_container(hydra.compose(config_name=stage), resolve=False)
    yield from _names(config, "")


def choices_with(option: str) -> list[str]:
    """The choices of a group that have this option, as typed: `data=hf` for `data.root`."""
    group, _, name = option.partition(".")
    if group not in groups():
        return []
    files = {path.stem: yaml.safe_load(path.read_text()) for path in _files(group)}
    return [f"{group}={choice}" for choice, content in files.items() if name in (content or {})]


@cache
def groups() -> tuple[str, ...]:
    """Config groups, each an option that chooses a file: data, model and so on."""
    return tuple(sorted(path.name for path in config_directory().iterdir() if path.is_dir()))


def choices(group: str) -> list[str]:
    """The choices of a config group."""
    return [path.stem for path in _files(group)]


def _files(group: str) -> list[Path]:
    return sorted((config_directory() / group).glob("*.yaml"))


def _names(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{prefix}{name}"
            yield from _names(value, f"{prefix}{name}.")
