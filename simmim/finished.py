"""Whether a run directory holds a finished run of this very configuration.

`summary.json` holds what a run came to, `.hydra/finished.yaml` the configuration that this belongs to.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from simmim.errors import UserError

# These change nothing about what a run comes to.
_NO_DIFFERENCE = {
    *("run_dir", "resume", "objective", "preflight", "logger", "save", "reconstructions", "report"),
    *("data.num_workers", "model.checkpoint_blocks", "model.sequential_attention"),
}
_LENGTH = {"trainer.max_epochs", "trainer.max_steps"}


def record_finished(run_dir: Path, config: DictConfig, overrides: Sequence[str]) -> None:
    """Notes what `summary.json` was made with."""
    path = run_dir / ".hydra" / "finished.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "overrides": list(overrides),
        "config": OmegaConf.to_container(config, resolve=True),
    }
    OmegaConf.save(OmegaConf.create(content), path)


def is_finished(run_dir: Path, config: DictConfig) -> bool:
    """Whether nothing is left to train: a run of this configuration has ended, and was not made longer.

    Raises:
        UserError: a finished run of another configuration.
    """
    summary, record = run_dir / "summary.json", run_dir / ".hydra" / "finished.yaml"
    if not (summary.is_file() and record.is_file()):
        return False
    before = dict(_leaves(OmegaConf.to_container(OmegaConf.load(record))["config"]))  # type: ignore
    now = dict(_leaves(OmegaConf.to_container(config, resolve=True)))
    changed = sorted(
        name for name in before.keys() | now.keys() if before.get(name) != now.get(name)
    )
    if not changed:
        return True
    if set(changed) <= _LENGTH and all(_end(now[name]) >= _end(before[name]) for name in changed):
        return False
    name = changed[0]
    others = f" and {len(changed) - 1} more" if changed[1:] else ""
    raise UserError(
        f"{run_dir} holds a finished run of another configuration ({name} {before.get(name)} "
        f"instead of {now.get(name)}{others}); use another run_dir, or remove it"
    )


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all options with their values, but for those that make no difference."""
    if path in _NO_DIFFERENCE:
        return
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from _leaves(value, f"{path}.{name}" if path else str(name))
    else:
        yield path, node


def _end(length: int | None) -> float:
    return float("inf") if length is None or length < 0 else length
