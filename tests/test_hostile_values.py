"""Each option with numbers that are none for it: taken, or refused in a line that names the option."""

import copy
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
from conftest import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from simmim.cli.main import run_stage
from simmim.cli.mistakes import explain, mendable

pytestmark = [pytest.mark.slow, pytest.mark.unchecked]

HOSTILE = ("-1", "nan", "1e30", "[1]")
# Of each stage, the options that the ones before it do not have; drawn pictures, few of them.
STAGES = {"pretrain": "", "finetune": "mixing ema mode report"}
SMALL = ["data.num_workers=0", "data.train_size=64", "data.val_size=64", "trainer=cpu"]


class ReachedError(Exception):
    """Nothing was refused: the weights would be drawn now."""


def numbers(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where a configuration has a number, a list of them, or nothing."""
    for name, value in node.items():
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(value, dict):
            yield from numbers(value, (*path, name))
        elif first is None or isinstance(first, (int, float)):
            yield (*path, name)


@pytest.mark.parametrize("stage", STAGES)
def test_a_number_that_is_none_is_one_line_that_names_the_option(stage, tmp_path, monkeypatch):
    def stop(*_: Any, **__: Any) -> None:
        raise ReachedError

    monkeypatch.setattr(pl, "seed_everything", stop)
    monkeypatch.chdir(tmp_path)
    composed = OmegaConf.to_container(compose(stage, [*SMALL, "run_dir=run"]))
    assert isinstance(composed, dict)
    (tmp_path / "run").mkdir()
    own = STAGES[stage].split() or list(composed)
    wrong = []
    for path in numbers(composed):
        for hostile in HOSTILE if path[0] in own else ():
            config = copy.deepcopy(composed)
            node = config
            for name in path[:-1]:
                node = node[name]
            node[path[-1]] = OverridesParser.create().parse_override(f"x={hostile}").value()
            told = refusal(stage, config)
            option = path[-1].replace("_", " ")
            if told and ("\n" in told or option not in told.replace("_", " ")):
                wrong.append(f"{'.'.join(path)}={hostile}: {told}")
    assert wrong == [], "\n".join(wrong)


def refusal(stage: str, config: dict[str, Any]) -> str | None:
    """What is said of it; a traceback's end where it is no line, None where it is taken."""
    try:
        run_stage(stage, OmegaConf.create(config), config["run_dir"])
    except ReachedError:
        return None
    except Exception as error:
        mistake = mendable(error)
        if mistake is None:
            return f"{error!r}\n{traceback.format_exc()[-300:]}"
        return explain(mistake, stage)
    return None
