"""Peak memory of the training step of one implementation, in a separate process.

`python -m simmim.benchmark.memory '{"name": …}'` prints the peak in bytes minus the memory of the
process without the model.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from simmim.benchmark.implementations import Implementations
from simmim.benchmark.timing import run_step
from simmim.benchmark.workloads import Precision, Workload, draw_inputs
from simmim.utils.devices import peak_memory_bytes

_STEPS = 2


@dataclass(frozen=True)
class Measurement:
    """Which implementation to measure, with which workload and settings."""

    name: str
    work: tuple[Any, ...]
    precision: Precision
    compiled: bool
    device: str
    threads: int
    official: str | None


def measure_apart(measurement: Measurement) -> int:
    """Measures the bytes in a new process."""
    command = [sys.executable, "-m", "simmim.benchmark.memory", json.dumps(asdict(measurement))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def measure_here(measurement: Measurement) -> int:
    """Measures the bytes in this process, which must be new."""
    torch.set_num_threads(measurement.threads)
    device = torch.device(measurement.device)
    work = Workload(*measurement.work)
    official = None if measurement.official is None else Path(measurement.official)
    inputs = draw_inputs(work, device)
    before = 0
    implementation = Implementations((), official).create(
        measurement.name, work, compiled=measurement.compiled
    )
    assert implementation is not None
    if device.type == "cpu":
        before = _resident_bytes() - sum(
            parameter.numel() * parameter.element_size()
            for parameter in implementation.model.parameters()
        )
    implementation.model.to(device).train(work.kind != "inference")
    for _ in range(_STEPS):
        run_step(implementation, work, inputs, measurement.precision)
    return peak_memory_bytes(device) - before


def _resident_bytes() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    # Resets the peak, which would otherwise include memory that imports used and freed.
    Path("/proc/self/clear_refs").write_text("5")
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(measure_here(Measurement(**json.loads(sys.argv[1]))))
