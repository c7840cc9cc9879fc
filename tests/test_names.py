"""Every name that the code uses is there: ruff's F821, but for shapes, which it takes for names.

`Float[Tensor, "b h w c"]` is to it an annotation in a string, so the rule is off in pyproject.toml.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
