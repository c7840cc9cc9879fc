"""Whether a run directory holds a finished run of the same configuration.

`summary.json` holds a run's results, `.hydra/finished.yaml` the configuration they belong to.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from simmim.training.run_dir.config_diff import changed_options, is_longer, result_options
from simmim.training.run_dir.config_record import as_literals
from simmim.utils.errors import UserError
from simmim.utils.files import written_beside


def record_finished(run_dir: Path, config: DictConfig, overrides: Sequence[str]) -> None:
    """Records the configuration that `summary.json` belongs to."""
    path = run_dir / ".hydra" / "finished.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "overrides": list(overrides),
        "config": as_literals(OmegaConf.to_container(config, resolve=True)),
    }
    with written_beside(path) as beside:
        OmegaConf.save(OmegaConf.create(content), beside)


def is_finished(run_dir: Path, config: DictConfig) -> bool:
    """Whether a run of this configuration has finished; False if `config` makes it longer.

    Raises:
        UserError: the directory holds a finished run of another configuration.
    """
    summary, record = run_dir / "summary.json", run_dir / ".hydra" / "finished.yaml"
    if not (summary.is_file() and record.is_file()):
        return False
    before = _options(OmegaConf.load(record).config)
    now = _options(config)
    changed = changed_options(before, now)
    if not changed:
        return True
    if is_longer(before, now, changed):
        return False
    name = changed[0]
    others = f" and {len(changed) - 1} more" if changed[1:] else ""
    raise UserError(
        f"{run_dir} holds a finished run of another configuration ({name} {before.get(name)} "
        f"instead of {now.get(name)}{others}); use another run_dir, or remove it"
    )


def _options(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return result_options(plain)
