"""Two thousand files of weights that are broken in every way: refused in a line, or read."""

import random
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from simmim.checkpoints.formats.official import to_official
from simmim.checkpoints.metadata import describe_encoder
from simmim.checkpoints.model_file import save_encoder
from simmim.checkpoints.read import read_weights
from simmim.checkpoints.run_state import find_damage, require_resumable
from simmim.models.swin import SwinTransformer
from simmim.utils.errors import UserError
from simmim.utils.normalization import Normalisation

pytestmark = pytest.mark.torture

MUTANTS = 500  # of each kind of file
SECONDS = 5.0
MEMORY = 256 << 20  # beyond what this process has had


def cut(content: bytes, drawn: random.Random) -> bytes:
    return content[: drawn.randrange(len(content))]


def flip(content: bytes, drawn: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(drawn.choice((1, 1, 2, 16))):
        changed[drawn.randrange(len(changed))] ^= 1 << drawn.randrange(8)
    return bytes(changed)


def flip_near_the_ends(content: bytes, drawn: random.Random) -> bytes:
    """Where headers and directories are."""
    changed = bytearray(content)
    reach = min(len(changed), 2000)
    for _ in range(drawn.choice((1, 2, 8))):
        place = drawn.randrange(reach)
        changed[place if drawn.random() < 0.5 else -1 - place] = drawn.randrange(256)
    return bytes(changed)


def set_a_size(content: bytes, drawn: random.Random) -> bytes:
    """A large number where a length may stand."""
    changed = bytearray(content)
    size = struct.pack("<Q", drawn.choice((1 << 62, 1 << 40, 1 << 33, (1 << 31) - 1, 100_000_001)))
    reach = min(len(changed) - 8, 4000)
    place = drawn.choice((0, drawn.randrange(reach), len(changed) - 8 - drawn.randrange(reach)))
    length = drawn.choice((2, 4, 8))
    changed[place : place + length] = size[:length]
    return bytes(changed)


def swap(content: bytes, drawn: random.Random) -> bytes:
    """One stretch by another."""
    changed = bytearray(content)
    length = drawn.randrange(1, 512)
    first, second = (drawn.randrange(max(1, len(changed) - length)) for _ in range(2))
    changed[first : first + length] = content[second : second + length]
    return bytes(changed)


def add(content: bytes, drawn: random.Random) -> bytes:
    place = drawn.randrange(len(content))
    return content[:place] + drawn.randbytes(drawn.randrange(1, 300)) + content[place:]


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    *(cut, flip, flip_near_the_ends, set_a_size, swap, add),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run's checkpoint, an encoder of ours, official weights in a new and in an old file."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    encoder = SwinTransformer(
        image_size=32, window_size=4, embed_dim=16, depths=(1, 1), num_heads=(1, 2)
    )
    official = to_official(encoder.state_dict())
    paths = {
        name: folder / name for name in ("run.ckpt", "encoder.safetensors", "a.pth", "old.pth")
    }
    save_encoder(encoder, paths["encoder.safetensors"])
    torch.save({"model": official}, paths["a.pth"])
    torch.save({"model": official}, paths["old.pth"], _use_new_zipfile_serialization=False)
    weights = {f"model.encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    moments = {number: {"exp_avg": torch.randn(64, 64)} for number in range(4)}
    torch.save(
        {
            "state_dict": weights,
            "optimizer_states": [{"state": moments, "param_groups": [{"lr": 0.1}]}],
            "encoder": describe_encoder(encoder, Normalisation()),
            "callbacks": {"Checkpoints": {"options": {}}},
            "global_step": 7,
        },
        paths["run.ckpt"],
    )
    return paths


@pytest.mark.parametrize("name", ["run.ckpt", "encoder.safetensors", "a.pth", "old.pth"])
def test_mutants_are_refused_or_read(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    """No other error, no hang, no memory beyond the file's own many times over."""
    content = files[name].read_bytes()
    whole = read_weights(files[name])
    path = tmp_path / name
    drawn = random.Random(11)
    refused = read = 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for number in range(MUTANTS):
        path.write_bytes(MUTATIONS[number % len(MUTATIONS)](content, drawn))
        started = time.monotonic()
        try:
            weights = read_weights(path)
        except UserError as error:
            assert len(str(error).splitlines()) == 1, error
            assert str(path) in str(error)
            refused += 1
        else:
            read += 1
            # Files with checksums are right or refused.
            if name != "old.pth":
                assert weights.tensors.keys() == whole.tensors.keys()
                for key, tensor in whole.tensors.items():
                    assert torch.equal(weights.tensors[key], tensor), key
        if name == "run.ckpt":
            damage = find_damage(path)
            if damage is None:
                require_resumable(path)
            else:
                assert len(damage.splitlines()) == 1
        assert time.monotonic() - started < SECONDS
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - peak < MEMORY
    print(f"{name}: {MUTANTS} mutants, {refused} refused, {read} read")
    assert refused > MUTANTS / 2
