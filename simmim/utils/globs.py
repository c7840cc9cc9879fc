"""Glob patterns of paths."""

import glob
from pathlib import Path


def find_matches(pattern: str) -> list[str]:
    """Paths that a glob matches; in the names of existing folders, `[` and `*` are literal."""
    folder = next(parent for parent in Path(pattern).parents if parent.is_dir())
    below = str(Path(pattern).relative_to(folder))
    return [str(folder / found) for found in glob.glob(below, root_dir=folder, recursive=True)]
