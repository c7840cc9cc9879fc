"""Where the images of a tar shard are: so that a shard is read at random, like a folder.

A shard follows WebDataset's convention: files of one sample stand together and share their name up
to the first dot; the image is the one with an image's suffix, the label a `.cls`, or the folder that
the name begins with. An index is kept beside the shards in `.simmim-index` (where that can be
written) and made anew when a shard's size or time has changed.
"""

import os
import tarfile
import zipfile
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile

import numpy as np
from jaxtyping import Int, Shaped

from simmim.data.decode import IMAGE_SUFFIXES
from simmim.errors import UserError

INDEX_FOLDER = ".simmim-index"
LABEL_SUFFIX = ".cls"

# Longer labels are none.
_LONGEST_LABEL = 256
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard in their order; `damage` is why it ends early ("" where it is whole).

    `labels` are what `.cls` or the folder says ("" for none), as bytes like the names.
    """

    offsets: Int[np.ndarray, " n"]
    sizes: Int[np.ndarray, " n"]
    names: Shaped[np.ndarray, " n"]
    labels: Shaped[np.ndarray, " n"]
    damage: str

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.offsets)


def index_shard(path: Path) -> ShardIndex:
    """The index of a shard: the one that was kept, if it is still true, else a new one."""
    kept = path.parent / INDEX_FOLDER / f"{path.name}.npz"
    status = path.stat()
    stamp = np.array([status.st_size, status.st_mtime_ns])
    try:
        with np.load(kept, allow_pickle=False) as file:
            if np.array_equal(file["stamp"], stamp):
                columns = {name: file[name] for name in ("offsets", "sizes", "names", "labels")}
                return ShardIndex(**columns, damage=str(file["damage"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # there is none, or it was cut off
    index = scan_shard(path)
    if index.damage:
        return index  # it may be mended without another size or time
    try:
        kept.parent.mkdir(exist_ok=True)
        # Written beside and renamed: other processes and machines may do the same.
        with NamedTemporaryFile(dir=kept.parent, delete=False) as file:
            np.savez(file, **vars(index), stamp=stamp)
        Path(file.name).chmod(0o644)
        Path(file.name).replace(kept)
    except OSError:
        pass  # a folder that is only read is indexed by every run
    return index


def scan_shard(path: Path) -> ShardIndex:
    """Reads the headers of an uncompressed tar file. Nothing after a damage is kept.

    Raises:
        OSError: it cannot be read just now.
    """
    samples: list[_Sample] = []
    damage = ""
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            length = path.stat().st_size
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or memory grows with the shard
                if member.type not in _REGULAR or member.issparse():
                    continue
                _add(samples, member, file)
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("unexpected end of data")
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it does not end as a tar file does")
    except (tarfile.TarError, EOFError, ValueError) as error:
        damage = str(error) or type(error).__name__
        # What stands before the damage may lack a part.
        samples = samples[:-1]
    whole = [sample for sample in samples if sample.size >= 0]
    return ShardIndex(
        np.array([sample.offset for sample in whole], np.int64),
        np.array([sample.size for sample in whole], np.int64),
        np.array([os.fsencode(sample.name) for sample in whole], np.bytes_),
        np.array([sample.label for sample in whole], np.bytes_),
        damage,
    )


class _Sample:
    """Files of one key; `size` is -1 until its image is found."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.name = key
        self.offset = self.size = -1
        folder = key.split("/", 1)[0] if "/" in key else ""
        self.label = os.fsencode(folder)


def split_name(name: str) -> tuple[str, str]:
    """A member's key and suffixes, which begin at the first dot of the last part of its name."""
    path = PurePosixPath(name)
    stem, dot, suffixes = path.name.partition(".")
    return (path.parent / stem).as_posix(), (dot + suffixes).lower()


def is_image(suffixes: str) -> bool:
    """Whether a member with these suffixes is an image."""
    return f".{suffixes.rsplit('.', 1)[-1]}" in IMAGE_SUFFIXES


def parse_label(content: bytes) -> bytes:
    """What a `.cls` file says; nothing where it is too long to be a label."""
    return b"" if len(content) > _LONGEST_LABEL else content.strip()


def _add(samples: list[_Sample], member: tarfile.TarInfo, file: BufferedReader) -> None:
    key, suffixes = split_name(member.name)
    if PurePosixPath(member.name).name.startswith("."):
        return
    if not samples or samples[-1].key != key:
        samples.append(_Sample(key))
    sample = samples[-1]
    if suffixes == LABEL_SUFFIX:
        file.seek(member.offset_data)
        sample.label = parse_label(file.read(min(member.size, _LONGEST_LABEL + 1)))
    elif is_image(suffixes) and sample.size < 0:
        sample.name, sample.offset, sample.size = member.name, member.offset_data, member.size


def require_tar(path: Path) -> None:
    """Raises UserError for a compressed shard, which cannot be read at random."""
    with path.open("rb") as file:
        start = file.read(6)
    compressed = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
    if start.startswith(compressed):
        raise UserError(
            f"{path} is compressed and images in it cannot be reached one by one; decompress it "
            f"(images are compressed already), or stream it with data.root='pipe:zcat {path}'"
        )
