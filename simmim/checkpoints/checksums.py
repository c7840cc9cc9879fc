"""Checks that a file of weights is unchanged since it was written.

torch.save writes a zip archive with a CRC-32 for each tensor, which torch.load does not check. A
sharded checkpoint has `checksums.json`; a safetensors file of simmim has a CRC-32 in its metadata.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from simmim.utils.files import written_beside

_CHECKSUMS = "checksums.json"
_PIECE = 1 << 22  # bytes


class DamagedError(ValueError):
    """A file that has changed since it was written; the message says where."""


def require_intact(path: Path) -> None:
    """Checks the content of a file or folder against its checksums, and header sizes against its size.

    Files and folders without checksums (other programs' pickles) pass.

    Raises:
        DamagedError: a checksum or size differs.
    """
    if path.is_dir():
        _require_intact_folder(path)
    elif _is_archive(path):
        _require_intact_archive(path)


def write_checksums(folder: Path) -> None:
    """Writes size and CRC-32 of each file in the folder to `checksums.json`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _CHECKSUMS)
    with ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(_checksum, files))
    noted = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "crc32": value}
        for path, value in zip(files, sums, strict=True)
    }
    with written_beside(folder / _CHECKSUMS) as beside:
        beside.write_text(json.dumps(noted, indent=1))


def checksum_of(tensors: Mapping[str, Tensor], text: str) -> str:
    """CRC-32 of tensors on the CPU, in order of their names, and of a text that describes them."""
    value = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def _require_intact_folder(folder: Path) -> None:
    if not (folder / _CHECKSUMS).is_file():
        return
    try:
        noted = {
            folder / name: (int(entry["bytes"]), str(entry["crc32"]))
            for name, entry in json.loads((folder / _CHECKSUMS).read_text()).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{_CHECKSUMS} is damaged") from error
    for path, (size, _) in noted.items():
        if not path.is_file():
            raise DamagedError(f"{path.name} is gone")
        if path.stat().st_size != size:
            raise DamagedError(f"{path.name} has {path.stat().st_size} bytes, {size} were written")
    with ThreadPoolExecutor(8) as pool:
        for (path, (_, written)), found in zip(
            noted.items(), pool.map(_checksum, noted), strict=True
        ):
            if found != written:
                raise DamagedError(f"{path.name} is not as it was written")


def _checksum(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            value = zlib.crc32(piece, value)
    return f"{value:08x}"


def _is_archive(path: Path) -> bool:
    """Whether the first bytes are a zip archive's, as torch.load checks, however damaged the rest."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _require_intact_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # torch.save never compresses: an archive that unpacks to more than its size is not its
            # own.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise DamagedError("its parts are compressed, which torch.save never does")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise DamagedError("its parts are said to be larger than the file")
            # With torch.serialization.set_crc32_options(False), there are no checksums.
            if not any(entry.CRC for entry in entries):
                return
            for entry in entries:
                _read_through(archive, entry)
    except DamagedError:
        raise
    except Exception as error:  # zipfile raises many types of errors for a damaged archive
        raise DamagedError(str(error) or type(error).__name__) from error


def _read_through(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Reads a part to its end, where zipfile compares the checksum."""
    read = 0
    with archive.open(entry) as file:
        while piece := file.read(_PIECE):
            read += len(piece)
    if read != entry.file_size:
        raise DamagedError(f"{entry.filename} ends early")
