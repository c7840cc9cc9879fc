"""Finds the images that a user names: files, folders, globs, or a list of these."""

import glob
from collections.abc import Sequence
from pathlib import Path

from simmim.data.decoding.decode import IMAGE_SUFFIXES
from simmim.data.sources.image_folder import find_images
from simmim.utils.errors import UserError
from simmim.utils.globs import find_matches


def find_named(named: str | Sequence[str], option: str) -> list[Path]:
    """The image files in the order of `named`; those of a folder or glob are sorted by path.

    `option` is the name of the user's option, for error messages.

    Raises:
        UserError: a path does not exist, or a folder or glob has no image.
    """
    if isinstance(named, str):
        named = [named]
    if not named:
        raise UserError(f"{option}=[] names nothing; use {option}=DIR, a file or a glob")
    return [path for one in named for path in _find(one, option)]


def _find(name: str, option: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [path / below for below in find_images(path)]
        place = "no image below it"
    else:
        matching = map(Path, find_matches(str(path)))
        found = sorted(
            file for file in matching if file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES
        )
        place = "no image there" if glob.has_magic(name) else "neither a file nor a folder there"
    if not found:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{option}={name}: there is {place}; name files or a folder of {kinds}")
    return found
