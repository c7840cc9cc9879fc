"""Growth of time and memory with image area, batch size and depth, at a fixed window size."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from simmim.benchmark.implementations import Implementation
from simmim.benchmark.timing import create_timer, interleave
from simmim.benchmark.workloads import Inputs, Workload, draw_inputs
from simmim.models.reconstruction import loss_of_masked
from simmim.models.simmim import SimMIM
from simmim.models.swin import create_encoder
from simmim.plan.step_memory import StepTracer
from simmim.plan.tracer import Arithmetic

WINDOW = 8


@dataclass(frozen=True)
class Growth:
    """Time and memory of a step at several sizes, with the exponents of the fitted power laws.

    `activations` are in bytes, from `StepTracer`, which adds up the sizes of tensors.
    """

    of: str
    sizes: list[float]
    seconds: list[float]
    activations: list[float]
    time_exponent: float
    memory_exponent: float


def fit_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of a linear regression of the logarithms."""
    logs = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return statistics.linear_regression(*logs).slope


def measure_growth(model: str, device: torch.device, *, rounds: int, quick: bool) -> list[Growth]:
    """Measures SimMIM steps of one model over image areas, batch sizes and depths of stage 3.

    Image sides start at 256 px, as in the paper (Swin V2, table 1): costs that do not depend on the
    size, such as gradients of position biases and casts of weights, dominate at small sizes.
    """
    sides = [64, 128] if quick else [256, 384, 512, 768]
    batches = [1, 2] if quick else [2, 4, 8, 16]
    depths = [2, 4] if quick else [2, 6, 12, 18]
    side = sides[0]
    # Each entry: the size for the fit, then image side, batch size and depth of stage 3.
    growths: dict[str, list[tuple[float, tuple[int, int, int | None]]]] = {
        "area": [(side**2, (side, 2, None)) for side in sides],
        "batch": [(batch, (side, batch, None)) for batch in batches],
        "depth": [(6 + depth, (side, 2, depth)) for depth in depths],
    }
    return [_measure(of, steps, model, device, rounds) for of, steps in growths.items()]


def _measure(
    of: str,
    steps: Sequence[tuple[float, tuple[int, int, int | None]]],
    model: str,
    device: torch.device,
    rounds: int,
) -> Growth:
    sizes = [size for size, _ in steps]
    timers, activations = {}, []
    arithmetic = Arithmetic("cuda" if device.type == "cuda" else "cpu")
    for number, (side, batch, depth) in enumerate(setting for _, setting in steps):
        work = Workload("simmim", side, WINDOW, model, batch)
        simmim = _create(work, depth)
        most = work.masks.most_tokens(simmim.encoder.stride)
        step = partial(_step, simmim, most)
        timers[str(number)] = create_timer(
            Implementation(simmim, step), work, draw_inputs(work, device), "float32"
        )
        with torch.device("meta"):
            planned = _create(work, depth)
        needs = StepTracer(planned, arithmetic).trace(batch)
        activations.append(float(needs.activations))
    seconds = [statistics.median(taken) for taken in interleave(timers, rounds).values()]
    return Growth(
        of,
        sizes,
        seconds,
        activations,
        fit_exponent(sizes, seconds),
        fit_exponent(sizes, activations),
    )


def _create(work: Workload, depth: int | None) -> SimMIM:
    depths = None if depth is None else (2, 2, depth, 2)
    return SimMIM(
        create_encoder(
            work.model, image_size=work.image_size, window_size=work.window_size, depths=depths
        )
    )


def _step(model: SimMIM, most_tokens: int, inputs: Inputs) -> Tensor:
    assert inputs.mask is not None
    return loss_of_masked(model, inputs.images, inputs.mask, inputs.images, most_tokens)
