"""Every name that the code uses is there, and every import of simmim's, in strings and pages too.

For names this is ruff's F821, but for shapes, which it takes for names.
`Float[Tensor, "b h w c"]` is to it an annotation in a string, so the rule is off in pyproject.toml.
"""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
WITH_CODE = ("simmim", "tests", "scripts", "docs", "notebooks")


def test_no_name_is_undefined():
    found = subprocess.run(
        [
            *(sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821"),
            *("--output-format", "json", "simmim", "tests", "scripts"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    undefined = []
    for entry in json.loads(found.stdout):
        path, start = Path(entry["filename"]), entry["location"]
        line = path.read_text().splitlines()[start["row"] - 1]
        name = re.findall("`(.+)`", entry["message"])[0]
        if re.search(rf"\b{name}\b", re.sub(r'"[^"]*"', "", line)):
            undefined.append(f"{path.relative_to(ROOT)}:{start['row']}: {name}")
    assert undefined == []


def test_what_is_imported_is_there():
    """Also by programs within tests' strings, and by pages and notebooks, which no checker reads."""
    written = re.compile(r"from (simmim[\w.]*) import ([\w, ]+|\([^)]*\))")
    paths = (path for top in WITH_CODE for path in sorted((ROOT / top).rglob("*")))
    missing = []
    for path in (*paths, ROOT / "README.md"):
        if path.suffix not in (".py", ".md", ".ipynb"):
            continue
        for module, names in written.findall(path.read_text()):
            for name in re.findall(r"(\w+)(?: as \w+)?", names):
                if not exists(module, name):
                    missing.append(f"{path.relative_to(ROOT)}: from {module} import {name}")
    assert missing == []


def exists(module: str, name: str) -> bool:
    try:
        if hasattr(importlib.import_module(module), name):
            return True
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True
