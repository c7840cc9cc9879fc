"""Where the images of a tar shard are: so that a shard is read at random, like a folder.

Which files are images is told in `shard_samples`; an image's label is a `.cls`, or the folder that the
name begins with. An index is kept beside the shards in `.simmim-index` (where that can be written) and
made anew when a shard's size or time, or what is asked of it, has changed.
"""

import os
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from simmim.data.sources.shard_samples import (
    LABEL_SUFFIX,
    File,
    choose_images,
    group_files,
    is_needed,
    split_name,
)
from simmim.utils.errors import UserError

INDEX_FOLDER = ".simmim-index"
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
# Of indexes of other kinds, nothing is believed.
_VERSION = 2
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
    """The images of one shard in their order; `damage` is why it ends early ("" where it is whole).

    `labels` are what `.cls` or the folder says ("" for none), as bytes like the names. `left_out` are
    endings of other images of the same samples, `;` between them.
    """

    offsets: Int[np.ndarray, " n"]
    sizes: Int[np.ndarray, " n"]
    names: Shaped[np.ndarray, " n"]
    labels: Shaped[np.ndarray, " n"]
    damage: str
    left_out: str

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.offsets)


def index_shard(path: Path, keys: Sequence[str] = ()) -> ShardIndex:
    """The index of a shard: the one that was kept, if it is still true, else a new one.

    `keys` are those of `data.image_key`.
    """
    kept = path.parent / INDEX_FOLDER / f"{path.name}.npz"
    status = path.stat()
    stamp = np.array([status.st_size, status.st_mtime_ns])
    asked = f"{_VERSION} {';'.join(keys)}"
    try:
        index = _read_index(kept, stamp, asked)
        if index is not None:
            return index
    # There is none, or it was cut off; what else is wrong with it shows in many ways.
    except (*_DAMAGED, OSError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError):
        pass
    index = scan_shard(path, keys)
    if index.damage:
        return index  # it may be mended without another size or time
    try:
        kept.parent.mkdir(exist_ok=True)
        # Written beside and renamed: other processes and machines may do the same.
        with NamedTemporaryFile(dir=kept.parent, delete=False) as file:
            np.savez(file, **vars(index), stamp=stamp, asked=np.array(asked))
        Path(file.name).chmod(0o644)
        Path(file.name).replace(kept)
    except OSError:
        pass  # a folder that is only read is indexed by every run
    return index


def _read_index(path: Path, stamp: Int[np.ndarray, "2"], asked: str) -> ShardIndex | None:
    """An index that was kept; None if its shard has changed since, or it cannot be of that shard."""
    length = int(stamp[0])
    with np.load(path, allow_pickle=False) as file:
        # A sample takes two blocks of the shard at least, and a name and a label here.
        most = (length // tarfile.BLOCKSIZE + 1) * (_LONGEST_NAME + _LONGEST_LABEL) + (1 << 16)
        if sum(entry.file_size for entry in file.zip.infolist()) > most:
            return None
        if not np.array_equal(file["stamp"], stamp) or str(file["asked"]) != asked:
            return None
        offsets, sizes, names, labels = columns = [file[name] for name in _COLUMNS]
        is_sound = (
            all(column.shape == (len(offsets),) for column in columns)
            and offsets.dtype == sizes.dtype == np.int64
            and names.dtype.kind == labels.dtype.kind == "S"
            and bool(((offsets >= 0) & (sizes >= 0) & (sizes <= length - offsets)).all())
        )
        told = str(file["damage"]), str(file["left_out"])
        return ShardIndex(offsets, sizes, names, labels, *told) if is_sound else None


class _Stored(NamedTuple):
    """Where a file's content is; of a label, what it says."""

    offset: int
    size: int
    label: bytes


def scan_shard(path: Path, keys: Sequence[str] = ()) -> ShardIndex:
    """Reads the headers of an uncompressed tar file. Nothing after a damage is kept.

    Raises:
        OSError: it cannot be read just now.
    """
    files, damage = _read_files(path)
    chosen, left_out = [], set()
    for group in group_files(files):
        images = choose_images(group, keys)
        chosen += images
        taken = {image.image.path for image in images}
        left_out |= {
            file.name.suffixes for file in group if file.name.is_image and file.path not in taken
        }
    stored = [one.image.content for one in chosen]
    labels = [
        one.label.content.label if one.label else os.fsencode(one.image.name.folder)
        for one in chosen
    ]
    return ShardIndex(
        np.array([content.offset for content in stored], np.int64),
        np.array([content.size for content in stored], np.int64),
        np.array([os.fsencode(one.image.path) for one in chosen], np.bytes_),
        np.array(labels, np.bytes_),
        damage,
        ";".join(sorted(left_out)),
    )


def _read_files(path: Path) -> tuple[list[File[_Stored]], str]:
    """Images and labels of a shard in their order, and why it ends early ("": it does not)."""
    files: list[File[_Stored]] = []
    # Whether or not it is needed: what stands before a damage may lack a part.
    last = ""
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:", tarinfo=Member) as tar:
            length = path.stat().st_size
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or memory grows with the shard
                if member.type not in _REGULAR or member.issparse():
                    continue
                name = split_name(member.name)
                last = name.key
                if is_needed(member.name):
                    label = b""
                    if name.ending == LABEL_SUFFIX:
                        file.seek(member.offset_data)
                        label = parse_label(file.read(min(member.size, _LONGEST_LABEL + 1)))
                    stored = _Stored(member.offset_data, member.size, label)
                    files.append(File(member.name, name, stored))
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("unexpected end of data")
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it does not end as a tar file does")
    except _DAMAGED as error:
        whole = [file for file in files if file.name.key != last]
        return whole, str(error) or type(error).__name__
    return files, ""


def parse_label(content: bytes) -> bytes:
    """What a `.cls` file says; nothing where that is -1, or too long to be a label."""
    label = content.strip()
    return b"" if label == _NO_LABEL or len(content) > _LONGEST_LABEL else label


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
