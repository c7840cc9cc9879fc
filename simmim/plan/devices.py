"""What a device has: memory and arithmetic, by name, or as this machine is."""

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

# Of a GPU's memory, left for CUDA's context, libraries' workspaces and gaps between tensors.
_GPU_RESERVE = 0.05


class Device(NamedTuple):
    """What a plan needs to know of a device.

    Attributes:
        memory: bytes that a run may take. Processes on a CPU share those of their machine.
        peak_flops: floating-point operations a second, by precision; empty: not known.
        process: bytes that the process has taken already, besides what trains.
        has_bf16: whether it is a GPU that computes in bf16, which `trainer.precision=auto` asks for.
    """

    name: str
    backend: Backend
    memory: int
    peak_flops: dict[str, float]
    process: int = 0
    has_bf16: bool = False


def _gpu(name: str, gigabytes: float, bf16: float, float32: float) -> Device:
    """Memory and dense arithmetic as in NVIDIA's data sheets, in TFLOP/s."""
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
    """The named device; `auto` is what this machine has.

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
    """A GPU here, and its arithmetic where its name tells."""
    properties = torch.cuda.get_device_properties(index)
    known = next(
        (device for name, device in DEVICES.items() if name in properties.name.lower()), None
    )
    memory = int(properties.total_memory * (1 - _GPU_RESERVE))
    flops = known.peak_flops if known else {}
    return Device(properties.name, "cuda", memory, flops, has_bf16=computes_in_bf16())


def this_machine() -> Device:
    """The CPU: what memory is free or this process has already, within the limits of its cgroup."""
    process: int = psutil.Process().memory_info().rss
    available = min([psutil.virtual_memory().available, *_cgroup_room()])
    return Device("CPU", "cpu", available + process, {}, process)


def _cgroup_room(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """Bytes that this process's cgroups may still take (version 2, then 1); none where unlimited."""
    room = []
    for folder, limit, usage in (
        *((folder, "memory.max", "memory.current") for folder in _cgroup_folders(root, own)),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
            # Pages of files that were read give way.
            stat = (folder / "memory.stat").read_text()
        except OSError:
            continue
        cached = re.search(r"^inactive_file (\d+)$", stat, re.MULTILINE)
        if most != "max":
            room.append(max(0, int(most) - used + (int(cached[1]) if cached else 0)))
    return room


def _cgroup_folders(root: Path, own: Path) -> list[Path]:
    """The folder of this process's cgroup and of those around it, up to the root: all limit it."""
    try:
        named = re.search(r"^0::/(.*)$", own.read_text(), re.MULTILINE)
    except OSError:
        named = None
    folder = root / named[1] if named else root
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def parse_bytes(text: str | int) -> int:
    """Bytes of `80GB` (10⁹), `80GiB` (2³⁰) or a number.

    Raises:
        UserError: something else, or nothing at all.
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
    """`12.3 GB`, `450 MB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
