"""Indexes of the images in tar shards, for random access as in a folder.

`shard_samples` decides which files are images; an image's label is in a `.cls` file, or is the
first folder of its path. An index is stored beside the shards in `.simmim-index` (if that is
writable), and made again when a shard's size or modification time, or `data.image_key`, has
changed.
"""

import os
import tarfile
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
# Bytes; longer contents are not labels.
_LONGEST_LABEL = 256
_NO_LABEL = b"-1"
# Longer names count as damage: an index takes as many bytes for each name as for the longest.
_LONGEST_NAME = 1024
# Bytes of a header with a long name or other attributes; usual ones have a few hundred.
_LONGEST_HEADER = 1 << 14
_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_COLUMNS = ("offsets", "sizes", "names", "labels")
# Indexes of other versions are not used.
_VERSION = 2
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)


class Member(tarfile.TarInfo):
    """A member whose header is checked first, so that no header makes the reader take much memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        """Reads what belongs to the header (tarfile calls this; it is meant to be overridden)."""
        if self.size < 0 or (self.type in _HEADERS and self.size > _LONGEST_HEADER):
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        member: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]
        # A header before it may have changed the size.
        if member.size < 0:
            raise tarfile.ReadError(f"a file of {member.size} bytes")
        if member.issparse():
            raise tarfile.ReadError("a sparse file")
        if len(member.name) > _LONGEST_NAME:
            raise tarfile.ReadError(f"a name of {len(member.name)} characters")
        return member


@dataclass(frozen=True)
class ShardIndex:
    """The images of one shard in order; `damage` is why the shard ends early ("" if it does not).

    `labels` are from `.cls` files or folders (empty for none), as bytes, like the names. `left_out`
    has the endings of the samples' other images, separated by `;`.
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
    """The index of a shard: the stored one, if it is up to date, else a new one.

    `keys` are the patterns of `data.image_key`.
    """
    kept = path.parent / INDEX_FOLDER / f"{path.name}.npz"
    status = path.stat()
    stamp = np.array([status.st_size, status.st_mtime_ns])
    asked = f"{_VERSION} {';'.join(keys)}"
    try:
        index = _read_index(kept, stamp, asked)
        if index is not None:
            return index
    except Exception:  # there is none, or it is damaged, which raises many types of errors
        pass
    index = scan_shard(path, keys)
    if index.damage:
        return index  # it may be repaired without a new size or time
    try:
        kept.parent.mkdir(exist_ok=True)
        # Written to a temporary file and renamed: other processes and machines may do the same.
        with NamedTemporaryFile(dir=kept.parent, delete=False) as file:
            np.savez(file, **vars(index), stamp=stamp, asked=np.array(asked))
        Path(file.name).chmod(0o644)
        Path(file.name).replace(kept)
    except OSError:
        pass  # every run indexes a read-only folder again
    return index


def _read_index(path: Path, stamp: Int[np.ndarray, "2"], asked: str) -> ShardIndex | None:
    """A stored index; None if its shard has changed since, or it cannot be of this shard."""
    length = int(stamp[0])
    with np.load(path, allow_pickle=False) as file:
        # A sample takes at least two blocks of the shard, and a name and a label of the index.
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
    """Where a file's content is, in bytes, and the label of a label file."""

    offset: int
    size: int
    label: bytes


def scan_shard(path: Path, keys: Sequence[str] = ()) -> ShardIndex:
    """Reads the headers of an uncompressed tar file, up to the first damage.

    Raises:
        OSError: the file cannot be read at the moment.
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
    """Images and labels of a shard in order, and why it ends early ("" if it does not)."""
    files: list[File[_Stored]] = []
    # Key of the last file, needed or not: the sample just before a damage may lack a part.
    last = ""
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:", tarinfo=Member) as tar:
            length = path.stat().st_size
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or memory grows with the shard
                if member.type not in _REGULAR:
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
    except OSError:
        raise
    except Exception as error:  # tarfile raises many types of errors for a damaged file
        whole = [file for file in files if file.name.key != last]
        return whole, str(error) or type(error).__name__
    return files, ""


def parse_label(content: bytes) -> bytes:
    """The label in a `.cls` file; empty if it is -1, or too long to be a label."""
    label = content.strip()
    return b"" if label == _NO_LABEL or len(content) > _LONGEST_LABEL else label


def require_tar(path: Path) -> None:
    """Raises UserError for a compressed shard, which has no random access."""
    with path.open("rb") as file:
        start = file.read(6)
    compressed = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
    if start.startswith(compressed):
        raise UserError(
            f"{path} is compressed and images in it cannot be reached one by one; decompress it "
            f"(images are compressed already), or stream it with data.root='pipe:zcat {path}'"
        )
