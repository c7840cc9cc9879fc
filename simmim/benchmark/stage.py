"""The benchmark stage: step time, memory, loading, growth and compile time."""

import os
import platform
import re
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig

from simmim.benchmark import tables
from simmim.benchmark.compile_time import measure_compile_time
from simmim.benchmark.implementations import PEERS, Implementations
from simmim.benchmark.loading import SIZES, measure_loading
from simmim.benchmark.memory import Measurement, measure_apart
from simmim.benchmark.scaling import measure_growth
from simmim.benchmark.timing import create_timer, interleave, ratio
from simmim.benchmark.workloads import (
    Precision,
    Workload,
    available_precisions,
    draw_inputs,
    parse_row,
)
from simmim.utils.console import say
from simmim.utils.devices import find_device
from simmim.utils.errors import UserError
from simmim.utils.files import as_json

Part = Literal["steps", "memory", "loading", "growth", "compile_time"]


def benchmark(
    *,
    parts: Sequence[Part],
    models: Sequence[str],
    rows: Sequence[str],
    compiled_rows: Sequence[str],
    memory_rows: Sequence[str],
    precisions: Sequence[str],
    peers: DictConfig,
    batch_size: int,
    rounds: int,
    images: int,
    compile_time: Sequence[str],
    quick: bool,
    device: str,
    threads: int | None,
    run_dir: str,
) -> dict[str, Any]:
    """Measures, writes `benchmark.json` and `benchmark.png`, and returns the results.

    Images are random noise, and JPEG files are synthetic; no data set is read.

    Raises:
        UserError: an unknown row, peer or precision, or a number that is not positive.
    """
    place = find_device(device)
    for name, value in (("batch_size", batch_size), ("rounds", rounds), ("images", images)):
        if value < 1:
            raise UserError(f"{name}={value} is not positive; use 1 or more")
    official = None if peers.official is None else Path(str(peers.official))
    implementations = Implementations(tuple(str(name) for name in peers.names), official)
    unknown = [name for name in implementations.peers if name not in PEERS]
    if unknown:
        raise UserError(f"peers.names={unknown[0]} is unknown; use {', '.join(PEERS)}")
    if threads is not None:
        torch.set_num_threads(threads)
    steps = StepBenchmark(implementations, place, available_precisions(place, precisions), rounds)

    def works(named: Sequence[str]) -> list[Workload]:
        return [parse_row(row, model, batch_size) for model in models for row in named]

    chosen = works(rows), works(compiled_rows), works(memory_rows)
    measured: dict[str, Any] = {"machine": describe_machine(place), "rounds": rounds}
    say(f"{measured['machine']['processor']}, {torch.get_num_threads()} threads")
    growths = []
    if "steps" in parts:
        measured["steps"] = [
            *steps.time_all(chosen[0], compiled=False),
            *steps.time_all(chosen[1], compiled=True),
        ]
        tables.show_steps(measured["steps"])
    if "memory" in parts:
        measured["memory"] = steps.weigh_all(chosen[2])
        tables.show_memory(measured["memory"])
    if "loading" in parts:
        measured["loading"] = load_all(images, rounds)
        tables.show_loading(measured["loading"])
    if "growth" in parts:
        growths = measure_growth(models[0], place, rounds=rounds, quick=quick)
        measured["growth"] = [asdict(growth) for growth in growths]
        tables.show_growth(growths)
    if "compile_time" in parts:
        seconds = {name: measure_compile_time(name, place) for name in compile_time}
        measured["compile_time_seconds"] = seconds
        tables.show_compile_time(seconds)
    folder = Path(run_dir)
    (folder / "benchmark.json").write_text(as_json(measured) + "\n")
    tables.draw(folder / "benchmark.png", measured.get("steps", []), growths)
    say(f"written to {folder / 'benchmark.json'}")
    return measured


class StepBenchmark:
    """Benchmarks steps of implementations on a device, in given precisions and number of rounds."""

    def __init__(
        self,
        implementations: Implementations,
        device: torch.device,
        precisions: Sequence[Precision],
        rounds: int,
    ) -> None:
        self.implementations = implementations
        self.device = device
        self.precisions = precisions
        self.rounds = rounds

    def time_all(self, works: Sequence[Workload], *, compiled: bool) -> list[dict[str, Any]]:
        """Seconds and ratios of each workload in each precision."""
        return [
            self.time(work, precision, compiled=compiled)
            for work in works
            for precision in self.precisions
        ]

    def time(self, work: Workload, precision: Precision, *, compiled: bool) -> dict[str, Any]:
        """Seconds and ratios of all implementations that support a workload."""
        say(f"{work.model} {work.name}, {precision}{', compiled' if compiled else ''} …")
        torch.compiler.reset()
        inputs = draw_inputs(work, self.device)
        timers: dict[str, Callable[[], float]] = {}
        for name in self.implementations.names:
            implementation = self.implementations.create(name, work, compiled=compiled)
            if implementation is not None:
                timers[name] = create_timer(implementation, work, inputs, precision)
        seconds = interleave(timers, self.rounds)
        ours = seconds["ours"]
        return {
            "row": work.name,
            "model": work.model,
            "batch_size": work.batch_size,
            "precision": precision,
            "compiled": compiled,
            "seconds": {name: statistics.median(taken) for name, taken in seconds.items()},
            "ratios": {
                name: ratio(ours, taken)._asdict()
                for name, taken in seconds.items()
                if name != "ours"
            },
        }

    def weigh_all(self, works: Sequence[Workload]) -> list[dict[str, Any]]:
        """Peak bytes of each workload in each precision, each measured in a new process."""
        return [
            {
                "row": work.name,
                "model": work.model,
                "batch_size": work.batch_size,
                "precision": precision,
                "compiled": False,
                "bytes": {
                    name: measure_apart(self._measurement(name, work, precision))
                    for name in self.implementations.names
                    if name != "torchvision" or work.kind != "simmim"
                },
            }
            for work in works
            for precision in self.precisions
        ]

    def _measurement(self, name: str, work: Workload, precision: Precision) -> Measurement:
        return Measurement(
            name,
            tuple(work),
            precision,
            compiled=False,
            device=str(self.device),
            threads=torch.get_num_threads(),
            official=None
            if self.implementations.official is None
            else str(self.implementations.official),
        )


def load_all(count: int, rounds: int) -> list[dict[str, Any]]:
    """Measures loading for each file size, with fewer files of the larger sizes."""
    rows = []
    for width, height in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            fewer = max(2, count * SIZES[0][0] * SIZES[0][1] // (width * height))
            rates, compared = measure_loading(
                Path(folder, "files"), (width, height), count=fewer, rounds=rounds
            )
        rows.append(
            {
                "size": f"{width}×{height}",
                "images_per_second": rates,
                "ratio": compared._asdict(),
            }
        )
    return rows


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The hardware and package versions that the results are for."""
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists() and (
        model := re.search(r"model name\s*:\s*(.+)", information.read_text())
    ):
        cpu = model[1]
    processor = f"{cpu}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    return {
        "processor": processor,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **{
            package: version(package)
            for package in ("timm", "transformers", "torchvision")
            if find_spec(package)
        },
    }
