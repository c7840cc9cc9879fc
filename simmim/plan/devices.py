"""Memory and peak FLOPs of devices, by name or of this machine."""

import re
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from simmim.plan.tracer import Backend
from simmim.utils.devices import computes_in_bf16
from simmim.utils.errors import UserError

_UNITS = {"": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

# Share of a GPU's memory reserved for the CUDA context, library workspaces and fragmentation.
_GPU_RESERVE = 0.05


class Device(NamedTuple):
    """What a plan needs to know about a device.

    Attributes:
        memory: bytes that a run may use. Processes on a CPU share the memory of their machine.
        peak_flops: floating-point operations per second, by precision; empty if not known.
        process: bytes that the process already uses, besides training.
        has_bf16: whether it is a GPU with bf16 support, which `trainer.precision=auto` then uses.
    """

    name: str
    backend: Backend
    memory: int
    peak_flops: dict[str, float]
    process: int = 0
    has_bf16: bool = False


def _gpu(name: str, gigabytes: float, bf16: float, float32: float) -> Device:
    """A GPU with memory in GB and dense TFLOP/s as in NVIDIA's data sheets."""
    flops = {"bf16-mixed": bf16 * 1e12, "16-mixed": bf16 * 1e12, "32-true": float32 * 1e12}
    return Device(name, "cuda", int(gigabytes * 1e9 * (1 - _GPU_RESERVE)), flops, has_bf16=True)


DEVICES = {
    device.name.lower(): device
    for device in (
        _gpu("A100", 80, 312, 19.5),
        _gpu("A100-40GB", 40, 312, 19.5),
        _gpu("H100", 80, 989, 67),
        _gpu("H200", 141, 989, 67),
    )
}


def find_device(name: str) -> Device:
    """The named device; `auto` is this machine's GPU, or else its CPU.

    Raises:
        UserError: an unknown name.
    """
    if name == "auto":
        return this_gpu() if torch.cuda.is_available() else this_machine()
    if name == "cpu":
        return this_machine()
    if name.lower() not in DEVICES:
        known = ", ".join(device.name for device in DEVICES.values())
        raise UserError(f"plan.device={name} is unknown; use auto, cpu, {known}")
    return DEVICES[name.lower()]


def this_gpu(index: int = 0) -> Device:
    """A GPU of this machine, with its peak FLOPs if its name is known."""
    properties = torch.cuda.get_device_properties(index)
    known = next(
        (device for name, device in DEVICES.items() if name in properties.name.lower()), None
    )
    memory = int(properties.total_memory * (1 - _GPU_RESERVE))
    flops = known.peak_flops if known else {}
    return Device(properties.name, "cuda", memory, flops, has_bf16=computes_in_bf16())


def this_machine() -> Device:
    """The CPU, with the memory that is free or in use by this process, within its cgroup's limits."""
    process: int = psutil.Process().memory_info().rss
    available = min([psutil.virtual_memory().available, *_cgroup_room()])
    return Device("CPU", "cpu", available + process, {}, process)


def _cgroup_room(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """Bytes still available in this process's cgroups (version 2, then 1); empty if unlimited."""
    room = []
    for folder, limit, usage in (
        *((folder, "memory.max", "memory.current") for folder in _cgroup_folders(root, own)),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
            # The page cache of files is reclaimable.
            stat = (folder / "memory.stat").read_text()
        except OSError:
            continue
        cached = re.search(r"^inactive_file (\d+)$", stat, re.MULTILINE)
        if most != "max":
            room.append(max(0, int(most) - used + (int(cached[1]) if cached else 0)))
    return room


def _cgroup_folders(root: Path, own: Path) -> list[Path]:
    """The folders of this process's cgroup and its parents up to the root, all of which limit it."""
    try:
        named = re.search(r"^0::/(.*)$", own.read_text(), re.MULTILINE)
    except OSError:
        named = None
    folder = root / named[1] if named else root
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def parse_bytes(text: str | int) -> int:
    """Parses `80GB` (10⁹), `80GiB` (2³⁰) or a number as bytes.

    Raises:
        UserError: any other text, or less than one byte.
    """
    parts = re.fullmatch(r"([0-9.]+)\s*([kKMGT]?i?B)?", str(text).strip())
    try:
        value = float(parts[1]) * _UNITS[parts[2] or ""] if parts else 0.0
    except (ValueError, KeyError):
        value = 0.0
    if value < 1:
        raise UserError(f"plan.device_memory={text} is no size; use 80GB, 24GiB or bytes")
    return int(value)


def show_bytes(count: int) -> str:
    """Formats bytes as `12.3 GB` or `450 MB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
