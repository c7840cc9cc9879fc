"""Names that users type stay: functions, modules of commands, options (tests/public_names.json).

What is added is added to the file, by `python tests/test_public_names.py`; what is taken away is told
in CHANGELOG.md with what takes its place.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import yaml

from simmim.cli.known_options import config_directory, option_names

NAMES = Path(__file__).with_name("public_names.json")
PACKAGES = ("simmim", "simmim.analysis", "simmim.checkpoints", "simmim.data")


def dotted(node: Any, path: str = "") -> list[str]:
    """Names of options of a configuration file."""
    if not isinstance(node, dict):
        return [path]
    return [
        name
        for key, value in node.items()
        if not str(key).startswith("_")
        for name in dotted(value, f"{path}.{key}" if path else str(key))
    ]


def public_names() -> dict[str, list[str]]:
    names = {package: sorted(importlib.import_module(package).__all__) for package in PACKAGES}
    for root in sorted(config_directory().glob("*.yaml")):
        options = (name for name in option_names(root.stem) if "_target_" not in name)
        names[f"python -m simmim.{root.stem}"] = sorted(options)
    for choice in sorted(config_directory().glob("*/*.yaml")):
        group = choice.parent.name
        if group != "experiment":
            options = dotted(yaml.safe_load(choice.read_text()) or {})
            names[f"{group}={choice.stem}"] = sorted(options)
    return names


def test_nothing_that_users_type_is_gone():
    now = public_names()
    before = json.loads(NAMES.read_text())
    gone = {
        where: sorted(set(names) - set(now.get(where, [])))
        for where, names in before.items()
        if set(names) - set(now.get(where, [])) or where not in now
    }
    assert gone == {}
    new = {where for where, names in now.items() if names != before.get(where)}
    assert new == set(), "run python tests/test_public_names.py"


if __name__ == "__main__":
    NAMES.write_text(json.dumps(public_names(), indent=1) + "\n")
