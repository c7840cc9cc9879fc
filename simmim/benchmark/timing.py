"""Interleaved timing: A B C, A B C, …, so that slowdowns of the machine affect all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import NamedTuple

import torch

from simmim.benchmark.implementations import Implementation
from simmim.benchmark.workloads import Inputs, Precision, Workload

_WARMUP = 2
# GPU steps are short and asynchronous, so several are timed together.
_STEPS_AT_ONCE = {"cuda": 10}


class Ratio(NamedTuple):
    """Our time divided by a peer's in the same round, summarised over rounds."""

    median: float
    lowest: float
    highest: float


def run_step(
    implementation: Implementation, work: Workload, inputs: Inputs, precision: Precision
) -> None:
    """Runs one step: forward, loss and backward, or only forward for inference."""
    device = inputs.images.device.type
    is_training = work.kind != "inference"
    implementation.model.zero_grad(set_to_none=True)
    autocast = torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()
    with torch.set_grad_enabled(is_training), autocast:
        result = implementation.step(inputs)
    if is_training:
        torch.autograd.backward(result)


def create_timer(
    implementation: Implementation, work: Workload, inputs: Inputs, precision: Precision
) -> Callable[[], float]:
    """Creates a function that runs steps of an implementation and returns the seconds per step."""
    device = inputs.images.device
    implementation.model.to(device).train(work.kind != "inference")
    steps = _STEPS_AT_ONCE.get(device.type, 1)

    def timed() -> float:
        synchronise(device)
        started = time.perf_counter()
        for _ in range(steps):
            run_step(implementation, work, inputs, precision)
        synchronise(device)
        return (time.perf_counter() - started) / steps

    return timed


def interleave(timers: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Calls all timers once per round, after a warm-up; returns their seconds by round."""
    for timer in timers.values():
        for _ in range(_WARMUP):
            timer()
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            seconds[name].append(timer())
    return seconds


def ratio(ours: list[float], theirs: list[float]) -> Ratio:
    """The median, lowest and highest of the ratios of all rounds."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def synchronise(device: torch.device) -> None:
    """Waits until a GPU has finished its work; does nothing on other devices."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
