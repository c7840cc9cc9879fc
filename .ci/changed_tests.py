"""Prints the test files of what changed since a commit, for `make check`.

    python .ci/changed_tests.py          since the last commit
    python .ci/changed_tests.py main     since main

Of a module these are the tests that bear its name (`simmim/models/masking.py`: `test_masking.py`), or,
where there are none, those that name it; of a configuration those of all; a test file is its own.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Entry point."""
    base = sys.argv[1] if len(sys.argv) > 1 else "HEAD"
    found = {test for path in changed(base) for test in tests_of(path)}
    print("\n".join(sorted(str(test.relative_to(ROOT)) for test in found)))


def changed(base: str) -> list[Path]:
    """Files that differ from `base`, and new ones that git does not ignore."""
    commands = (
        ["git", "diff", "--name-only", base],
        ["git", "ls-files", "--others", "--exclude-standard"],
    )
    names = [
        name
        for command in commands
        for name in subprocess.check_output(command, cwd=ROOT, text=True).splitlines()
    ]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def tests_of(path: Path) -> Iterator[Path]:
    """The test files of one file."""
    place = path.relative_to(ROOT)
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    if place.parts[0] == "tests":
        yield from [path] if path in tests else []
    elif place.parts[0] == "conf":
        yield ROOT / "tests" / "cli" / "test_configurations.py"
    elif path.suffix == ".py":
        yield ROOT / "tests" / "test_layering.py"
        yield ROOT / "tests" / "test_names.py"
        stem = place.parent.name if place.stem in ("stage", "task", "__main__") else place.stem
        named = [test for test in tests if test.stem == f"test_{stem}"]
        dotted = ".".join(place.with_suffix("").parts)
        yield from named or [test for test in tests if dotted in test.read_text()]


if __name__ == "__main__":
    main()
