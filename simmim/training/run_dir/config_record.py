"""The resolved configuration of a run: shared by all its processes, recorded in its directory.

It is composed and resolved once, and written to a temporary folder of this launch. The processes
that Lightning starts for further devices, and that of a sweep's job, read it from there; an
environment variable holds its path. The run directory's `.hydra` is the record of the last run that
trained there: a launch that is refused, because another process is writing or because its options
differ, leaves it unchanged.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from uuid import uuid4

from omegaconf import DictConfig, OmegaConf

_CONFIGURATION = "SIMMIM_CONFIGURATION"
_RESOLVED = "resolved.yaml"


class Composed(NamedTuple):
    """A composed configuration, with all interpolations resolved.

    Attributes:
        path: the file that it is stored in.
        config: the stage's options; `run_dir` is absolute.
        overrides: the overrides of the command line.
        job_logging: Hydra's logging configuration, so that all processes log to the same files.
    """

    path: Path
    config: DictConfig
    overrides: list[str]
    job_logging: DictConfig

    @property
    def run_dir(self) -> Path:
        """The directory that the run writes to."""
        return Path(self.config.run_dir)


@contextmanager
def export_config(config: DictConfig, hydra_config: Any) -> Iterator[Composed]:
    """Writes the resolved configuration of a Hydra job, for the other processes of its run.

    It exists within the `with` block. For stages that do not train, and for a run directory without
    a record, it is also recorded there at once.
    """
    run_dir = Path(hydra_config.runtime.output_dir)
    options = OmegaConf.to_container(config, resolve=True)
    assert isinstance(options, dict)
    resolved = {
        "config": as_literals(options | {"run_dir": str(run_dir)}),
        "overrides": _plain(hydra_config.overrides.task),
        "job_logging": as_literals(OmegaConf.to_container(hydra_config.job_logging, resolve=True)),
    }
    with TemporaryDirectory(prefix="simmim-") as folder:
        # The first three have the names that Hydra gives them.
        for name, content in (
            ("config.yaml", config),
            ("hydra.yaml", OmegaConf.create({"hydra": hydra_config})),
            ("overrides.yaml", hydra_config.overrides.task),
            (_RESOLVED, OmegaConf.create(resolved)),
        ):
            Path(folder, name).write_text(OmegaConf.to_yaml(content))
        if "resume" not in config or not (run_dir / ".hydra" / _RESOLVED).exists():
            _copy(Path(folder), run_dir)
        yield read(Path(folder, _RESOLVED))


def read(path: Path) -> Composed:
    """Reads an exported configuration."""
    content = OmegaConf.load(path)
    assert isinstance(content, DictConfig)
    overrides = [str(override) for override in _plain(content.overrides)]
    return Composed(path, content.config, overrides, content.job_logging)


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=False)


def as_literals(node: Any) -> Any:
    """The same, with all strings escaped so that OmegaConf returns them unchanged, even with `${`."""
    if isinstance(node, dict):
        return {name: as_literals(value) for name, value in node.items()}
    if isinstance(node, list):
        return [as_literals(value) for value in node]
    return literal(node) if isinstance(node, str) else node


def literal(text: str) -> str:
    r"""Escapes a string so that OmegaConf returns it unchanged: `\${` in place of `${`."""
    parts = text.split("${")
    if len(parts) == 1:
        return text
    # A backslash before ${ would be read as an escape, and is doubled.
    ends = [part + "\\" * (len(part) - len(part.rstrip("\\"))) for part in parts[:-1]]
    return "\\${".join([*ends, parts[-1]])


def exported_config() -> Composed | None:
    """The configuration that this process was started with, if another process composed it."""
    path = os.environ.get(_CONFIGURATION)
    return None if path is None else read(Path(path))


@contextmanager
def config_env(composed: Composed) -> Iterator[None]:
    """Makes processes started within the `with` block run with this configuration."""
    before = os.environ.get(_CONFIGURATION)
    os.environ[_CONFIGURATION] = str(composed.path)
    try:
        yield
    finally:
        os.environ.pop(_CONFIGURATION)
        if before is not None:
            os.environ[_CONFIGURATION] = before


def record(run_dir: str | Path) -> None:
    """Records this launch's configuration in the run directory, once the run has passed all checks.

    Does nothing for a stage that is called from Python, which has no configuration file.
    """
    path = os.environ.get(_CONFIGURATION)
    if path is not None:
        _copy(Path(path).parent, Path(run_dir))


def _copy(folder: Path, run_dir: Path) -> None:
    target = run_dir / ".hydra"
    target.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.yaml"):
        # Each process of torchrun writes its own file first; none may read a half-written one.
        beside = target / f".{file.name}.{uuid4().hex}"
        shutil.copyfile(file, beside)
        os.replace(beside, target / file.name)
