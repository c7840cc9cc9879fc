"""Tar shards whose headers lie, and indexes that are not of their shard."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from broken_images import encoded, picture

from simmim.data import webdataset
from simmim.data.sources.shards import ShardImages, Shards
from simmim.data.sources.tar_index import INDEX_FOLDER, index_shard, scan_shard


def write_shard(path: Path, spoil=None, **members: bytes) -> Path:
    """A shard of members `name.png`, the second of which is spoiled."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"{name}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    if spoil is not None:
        content = bytearray(path.read_bytes())
        spoil(content)
        path.write_bytes(content)
    return path


def header(content: bytearray, at: int, *, size: bytes | None = None, kind: bytes | None = None):
    """Writes fields of a tar header, and its checksum."""
    if size is not None:
        content[at + 124 : at + 136] = size
    if kind is not None:
        content[at + 156 : at + 157] = kind
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])


@pytest.mark.parametrize(
    ("size", "kind", "damage"),
    [
        (b"77777777777\0", None, "unexpected end of data"),  # 8 GiB
        (b"\xff" * 12, None, "a header of -1 bytes"),
        (b"\x80" + b"\xff" * 11, None, "unexpected end of data"),
        (b"77777777777\0", b"L", "a header of 8589934591 bytes"),
        (b"\xff" * 12, b"L", "a header of -1 bytes"),
        (b"00010000000\0", b"x", "a header of 2097152 bytes"),
        (b"00010000000\0", b"g", "a header of 2097152 bytes"),
        (None, b"S", "a sparse file"),
    ],
)
def test_no_size_of_a_tar_header_is_believed(tmp_path, size, kind, damage):
    image = encoded("PNG", picture(size=10))
    third = 2 * (512 + -(-len(image) // 512) * 512)
    path = write_shard(
        tmp_path / "a.tar",
        lambda content: header(content, third, size=size, kind=kind),
        **{"0": image, "1": image, "2": image},
    )
    index = scan_shard(path)
    assert damage in index.damage
    # The second may lack a part.
    assert 1 <= len(index) <= 2
    assert (index.offsets + index.sizes <= path.stat().st_size).all()
    data = webdataset(
        root=f"file://{path}",
        val_root=f"file://{path}",
        image_size=4,
        train_transform=torch.nn.Identity(),
        batch_size=1,
        num_workers=0,
        samples_per_epoch=1,
    )
    assert 1 <= len(data.val) <= 2


@pytest.mark.parametrize(
    ("attributes", "damage"),
    [
        ({"size": "-5"}, "a file of -5 bytes"),
        ({"GNU.sparse.map": "0,10", "GNU.sparse.size": "10"}, "a sparse file"),
    ],
)
def test_nor_is_what_an_extended_header_says(tmp_path, attributes, damage):
    path = tmp_path / "a.tar"
    image = encoded("PNG")
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, said in (("0.png", {}), ("1.png", attributes)):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(image), said
            tar.addfile(info, io.BytesIO(image))
    assert damage in scan_shard(path).damage


def test_a_name_is_nowhere_to_write_to_and_not_of_any_length(tmp_path):
    image = encoded("PNG", picture(size=10))
    folder = tmp_path / "shards"
    folder.mkdir()
    write_shard(folder / "a.tar", **{"../../evil": image, "/tmp/evil": image, "n" * 900: image})
    assert len(scan_shard(folder / "a.tar")) == 3
    images = ShardImages(Shards([folder / "a.tar"], [index_shard(folder / "a.tar")], ()))
    assert all(images.load(number)[0].shape == (3, 10, 10) for number in range(3))
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        *(INDEX_FOLDER, "a.tar", "a.tar.npz", "shards"),
    ]
    write_shard(folder / "b.tar", **{"0": image, "n" * 5000: image})
    assert "a name of 5004 characters" in scan_shard(folder / "b.tar").damage


def test_headers_of_headers_without_end_are_damage(tmp_path):
    def chain(content: bytearray) -> None:
        start = bytes(content[:512])
        many = bytearray(start * 5000)
        for at in range(0, len(many), 512):
            header(many, at, size=b"00000000000\0", kind=b"L")
        content[:0] = many

    path = write_shard(tmp_path / "a.tar", chain, **{"0": encoded("PNG")})
    assert "recursion" in scan_shard(path).damage


@pytest.mark.parametrize(
    "forged",
    [
        {"sizes": np.array([2**62])},
        {"offsets": np.array([-5])},
        {"offsets": np.array([0, 512])},
        {"names": np.zeros(1, "S50000000")},
        {"sizes": np.array([5.0])},
        {"labels": np.zeros(3, "S1")},
        {"names": np.array([7])},
    ],
)
def test_an_index_that_cannot_be_of_its_shard_is_made_anew(tmp_path, forged):
    path = write_shard(tmp_path / "a.tar", **{"0": encoded("PNG")})
    whole = index_shard(path)
    kept = tmp_path / INDEX_FOLDER / "a.tar.npz"
    with np.load(kept) as file:
        columns = dict(file)
    np.savez_compressed(kept, **columns | forged)
    index = index_shard(path)
    assert index.sizes.tolist() == whole.sizes.tolist()
    assert index.offsets.tolist() == whole.offsets.tolist()
    assert index.names.tolist() == whole.names.tolist()
