"""Compares implementations with a float32 reference and measures their time and peak memory."""

import gc
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from implementations import AttentionInputs, Implementation, attend_with_reference
from jaxtyping import Float
from torch import Tensor

# The largest error allowed, relative to the largest value of the float32 reference.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
TF32_TOLERANCE = 2e-2


def benchmark(
    implementations: dict[str, Implementation], inputs: AttentionInputs, rounds: int
) -> dict[str, dict[str, Any]]:
    """Compares each implementation with the reference, then times the correct ones in turns.

    Returns by name the error, the peak memory and the times of all rounds; `not_run` is the reason
    why an implementation was not timed.
    """
    torch.compiler.reset()
    output_gradient = torch.randn_like(inputs.qkv[..., : inputs.qkv.shape[3] // 3])
    expected = compute_reference(inputs, output_gradient)
    tolerance = find_tolerance(inputs.qkv.dtype)
    results: dict[str, dict[str, Any]] = {}
    correct: dict[str, Implementation] = {}
    for name, implementation in implementations.items():
        try:
            error = measure_error(implementation, inputs, output_gradient, expected)
            peak = measure_peak_memory(implementation, inputs, output_gradient)
        except Exception as exception:
            # Implementations differ in what they support, and memory may run out: go on with the next.
            reason = f"{type(exception).__name__}: {exception}"
            results[name] = {"not_run": reason.split("\n", maxsplit=1)[0][:200]}
            free_memory(inputs.qkv.device)
            continue
        results[name] = {"error": error, "peak_bytes": peak, "step_ms": [], "forward_ms": []}
        if error < tolerance:
            correct[name] = implementation
        else:
            results[name]["not_run"] = f"wrong by {error:.1e} of the largest value"
    for _ in range(rounds):
        for name, implementation in correct.items():
            step_ms = measure_milliseconds(implementation, inputs, output_gradient)
            results[name]["step_ms"].append(step_ms)
            results[name]["forward_ms"].append(measure_milliseconds(implementation, inputs, None))
    return results


def find_tolerance(dtype: torch.dtype) -> float:
    """The largest relative error allowed for `dtype` at the current matmul precision."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return TF32_TOLERANCE
    return TOLERANCES[dtype]


def run_forward(
    implementation: Implementation, inputs: AttentionInputs
) -> Float[Tensor, "b windows tokens c"]:
    """Runs the forward pass alone."""
    with implementation.context():
        return implementation.attend(inputs)


def run_step(
    implementation: Implementation,
    inputs: AttentionInputs,
    output_gradient: Float[Tensor, "b windows tokens c"],
) -> tuple[Tensor, ...]:
    """Runs forward and backward; returns the output and the gradients of the inputs."""
    with implementation.context():
        output = implementation.attend(inputs)
        gradients = torch.autograd.grad(output, inputs.differentiable, output_gradient)
    return output.detach(), *gradients


def compute_reference(
    inputs: AttentionInputs, output_gradient: Float[Tensor, "b windows tokens c"]
) -> tuple[Tensor, ...]:
    """Output and gradients of the reference in float32, computed image by image."""
    outputs, qkv_gradients = [], []
    sums = [torch.zeros_like(inputs.bias), torch.zeros_like(inputs.factor)]
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    for image in range(inputs.qkv.shape[0]):
        qkv = inputs.qkv[image : image + 1].detach().float().requires_grad_()
        output, qkv_gradient, *others = run_step(
            Implementation(attend_with_reference),
            inputs._replace(qkv=qkv),
            output_gradient[image : image + 1].float(),
        )
        outputs.append(output)
        qkv_gradients.append(qkv_gradient)
        sums = [total + other for total, other in zip(sums, others, strict=True)]
    torch.set_float32_matmul_precision(precision)
    return torch.cat(outputs), torch.cat(qkv_gradients), *sums


def measure_error(
    implementation: Implementation,
    inputs: AttentionInputs,
    output_gradient: Float[Tensor, "b windows tokens c"],
    expected: Sequence[Tensor],
) -> float:
    """The largest error of output and gradients, relative to each one's largest value.

    Infinite if there is a NaN.
    """
    with torch.no_grad():  # compiles the graph without gradients ahead of timing
        run_forward(implementation, inputs)
    worst = 0.0
    found = run_step(implementation, inputs, output_gradient)
    for actual, right in zip(found, expected, strict=True):
        error = ((actual.float() - right).abs().max() / right.abs().max()).item()
        worst = max(worst, math.inf if math.isnan(error) else error)
    return worst


def measure_peak_memory(
    implementation: Implementation,
    inputs: AttentionInputs,
    output_gradient: Float[Tensor, "b windows tokens c"],
) -> int | None:
    """The peak memory of a step in bytes, without its inputs; None unless on a GPU."""
    device = inputs.qkv.device
    if device.type != "cuda":
        return None
    free_memory(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run_step(implementation, inputs, output_gradient)
    return torch.cuda.max_memory_allocated(device) - before


def free_memory(device: torch.device) -> None:
    """Frees what an implementation left behind, in the allocator's cache too."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure_milliseconds(
    implementation: Implementation,
    inputs: AttentionInputs,
    output_gradient: Float[Tensor, "b windows tokens c"] | None,
) -> float:
    """The time of one step; without an `output_gradient`, of one forward pass without gradients."""

    def run() -> None:
        if output_gradient is not None:
            run_step(implementation, inputs, output_gradient)
        else:
            with torch.no_grad():
                run_forward(implementation, inputs)

    if inputs.qkv.device.type != "cuda":
        started = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - started)
    started_event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    ended_event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    # The first run is not timed: its caches hold what the previous implementation left there, and it
    # gives the CPU time to queue the second, so that only the GPU's work is timed.
    run()
    started_event.record()
    run()
    ended_event.record()
    torch.cuda.synchronize(inputs.qkv.device)
    return float(started_event.elapsed_time(ended_event))
