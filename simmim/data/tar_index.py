"""Where the images of a tar shard are: so that a shard is read at random, like a folder.

A shard follows WebDataset's convention: files of one sample stand together and share their name up
to the first dot; the image is the one with an image's suffix, the label a `.cls`, or the folder that
the name begins with. An index is kept beside the shards in `.simmim-index` (where that can be
written) and made anew when a shard's size or time has changed.
"""

import os
import tarfile
import zipfile
import zlib
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
_NO_LABEL = b"-1"
# Longer names are damage: an index has as many bytes for each as for the longest.
_LONGEST_NAME = 1024
# Of a header that holds a long name or other attributes; ordinary ones have some hundred bytes.
_LONGEST_HEADER = 1 << 14
# Of all members, each of which keeps a copy.
_MOST_ATTRIBUTES = 100
_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_COLUMNS = ("offsets", "sizes", "names", "labels")
# What the readers raise for a damaged file.
_DAMAGED = (
    *(
        tarfile.TarError,
        EOFError,
        ValueError,
        LookupError,
        OverflowError,
        MemoryError,
        RecursionError,
    ),
    *(TypeError, AttributeError),
)
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)


class Member(tarfile.TarInfo):
    """A member whose header is not believed: none makes the reader take more than a little memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        """Reads what belongs to the header (tarfile calls this, and means it to be overridden)."""
        if self.size < 0 or (self.type in _HEADERS and self.size > _LONGEST_HEADER):
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file")
        if len(tar.pax_headers) > _MOST_ATTRIBUTES:
            raise tarfile.ReadError(f"{len(tar.pax_headers)} attributes for all members")
        member: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]
        if member.size < 0:
            raise tarfile.ReadError(f"a file of {member.size} bytes")
        if len(member.name) > _LONGEST_NAME:
            raise tarfile.ReadError(f"a name of {len(member.name)} characters")
        return member


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
        index = _read_index(kept, stamp)
        if index is not None:
            return index
    # There is none, or it was cut off; what else is wrong with it shows in many ways.
    except (*_DAMAGED, OSError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError):
        pass
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


def _read_index(path: Path, stamp: Int[np.ndarray, "2"]) -> ShardIndex | None:
    """An index that was kept; None if its shard has changed since, or it cannot be of that shard."""
    length = int(stamp[0])
    with np.load(path, allow_pickle=False) as file:
        # A sample takes two blocks of the shard at least, and a name and a label here.
        most = (length // tarfile.BLOCKSIZE + 1) * (_LONGEST_NAME + _LONGEST_LABEL) + (1 << 16)
        if sum(entry.file_size for entry in file.zip.infolist()) > most:
            return None
        if not np.array_equal(file["stamp"], stamp):
            return None
        offsets, sizes, names, labels = columns = [file[name] for name in _COLUMNS]
        is_sound = (
            all(column.shape == (len(offsets),) for column in columns)
            and offsets.dtype == sizes.dtype == np.int64
            and names.dtype.kind == labels.dtype.kind == "S"
            and bool(((offsets >= 0) & (sizes >= 0) & (sizes <= length - offsets)).all())
        )
        return ShardIndex(offsets, sizes, names, labels, str(file["damage"])) if is_sound else None


def scan_shard(path: Path) -> ShardIndex:
    """Reads the headers of an uncompressed tar file. Nothing after a damage is kept.

    Raises:
        OSError: it cannot be read just now.
    """
    samples: list[_Sample] = []
    damage = ""
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:", tarinfo=Member) as tar:
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
    except _DAMAGED as error:
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
    """What a `.cls` file says; nothing where that is -1, or too long to be a label."""
    label = content.strip()
    return b"" if label == _NO_LABEL or len(content) > _LONGEST_LABEL else label


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
