"""A configuration as it runs, the same for all processes of a run, and what stays of it.

It is composed once, and resolved, and stands in a folder of this start's own. The processes that
Lightning starts for further devices, and that of a sweep's job, read it from there; an environment
variable tells them where. The run directory's `.hydra` is the record of the run that went on last: a
start that is refused, because another process is writing or because its options do not fit, leaves it
as it is.
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
    """A configuration as it runs: nothing in it is left to resolve.

    Attributes:
        path: the file that it stands in.
        config: the stage's options; `run_dir` is absolute.
        overrides: what was typed.
        job_logging: Hydra's, for its handlers to write to the same files.
    """

    path: Path
    config: DictConfig
    overrides: list[str]
    job_logging: DictConfig

    @property
    def run_dir(self) -> Path:
        """Where the run writes."""
        return Path(self.config.run_dir)


@contextmanager
def export_config(config: DictConfig, hydra_config: Any) -> Iterator[Composed]:
    """Writes the configuration of a job of Hydra's, resolved, for the other processes of its run.

    They find it within the block. Stages that do not train, and a run directory without a record,
    have one at once.
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
        # The first three under the names that Hydra gives them.
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
    """A configuration that was handed over."""
    content = OmegaConf.load(path)
    assert isinstance(content, DictConfig)
    overrides = [str(override) for override in _plain(content.overrides)]
    return Composed(path, content.config, overrides, content.job_logging)


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=False)


def as_literals(node: Any) -> Any:
    """The same, with every text such that OmegaConf gives it back as it is, `${` or not."""
    if isinstance(node, dict):
        return {name: as_literals(value) for name, value in node.items()}
    if isinstance(node, list):
        return [as_literals(value) for value in node]
    return literal(node) if isinstance(node, str) else node


def literal(text: str) -> str:
    r"""A text that OmegaConf gives back as it is: `\${` in place of `${`."""
    parts = text.split("${")
    if len(parts) == 1:
        return text
    # A backslash before ${ would be taken for an escape.
    ends = [part + "\\" * (len(part) - len(part.rstrip("\\"))) for part in parts[:-1]]
    return "\\${".join([*ends, parts[-1]])


def exported_config() -> Composed | None:
    """The configuration that this process was started with, if another one composed it."""
    path = os.environ.get(_CONFIGURATION)
    return None if path is None else read(Path(path))


@contextmanager
def config_env(composed: Composed) -> Iterator[None]:
    """Processes that are started within the block run with this configuration."""
    before = os.environ.get(_CONFIGURATION)
    os.environ[_CONFIGURATION] = str(composed.path)
    try:
        yield
    finally:
        os.environ.pop(_CONFIGURATION)
        if before is not None:
            os.environ[_CONFIGURATION] = before


def record(run_dir: str | Path) -> None:
    """Makes this start's configuration the run's, once nothing is left that could refuse it.

    A stage that is called from Python has none.
    """
    path = os.environ.get(_CONFIGURATION)
    if path is not None:
        _copy(Path(path).parent, Path(run_dir))


def _copy(folder: Path, run_dir: Path) -> None:
    target = run_dir / ".hydra"
    target.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.yaml"):
        # Each process of torchrun writes a new one; none must read another's half.
        beside = target / f".{file.name}.{uuid4().hex}"
        shutil.copyfile(file, beside)
        os.replace(beside, target / file.name)
