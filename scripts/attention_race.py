"""Races the fused kernel against what PyTorch has: attention in shifted windows, forward and backward.

    python scripts/attention_race.py
    python scripts/attention_race.py --windows 12 --heads 4 --types bfloat16 --tiles

Each contender starts from the projection's output and ends with what the next projection takes, so that
each pays for its own layout, normalisation, bias and mask. All are first compared with attention in
plain float32, outputs and gradients, and one that is wrong is not timed. Then they take turns, once a
round. The table shows the median of a step with its middle half, and the allocator's peak (GPUs only);
everything is in --out, written after each shape. With --tiles the kernel races against itself, and the
lines to put into RACED_TILES of simmim/models/swin/kernels/triton_launch.py are printed.

On a machine without a GPU: `--device cpu --tokens 1000`, and the kernel itself with TRITON_INTERPRET=1,
which shows that it is right, not how fast it is.
"""

import argparse
import functools
import gc
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from simmim.models.swin.attention import attend_reference, attend_sdpa
from simmim.models.swin.kernels.triton_attention import fused_attention, regions_of
from simmim.models.swin.windows import attention_mask, fit_window

TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# Of the largest value of the float32 reference; what a right answer differs by stays well below.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
TF32_TOLERANCE = 2e-2
SDPA_BACKENDS = {
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
Attend = Callable[["Given"], Tensor]


class Given(NamedTuple):
    """What attention is computed from.

    Attributes:
        qkv: `(images, windows, tokens, 3 · heads · head_dim)`, as the projection leaves it.
        bias: float32 `(heads, tokens, tokens)`.
        factor: float32 `(heads,)`, what cosines are multiplied by.
        mask: True where two tokens do not see each other; None without a shift.
    """

    qkv: Tensor
    bias: Tensor
    factor: Tensor
    mask: Tensor | None

    @property
    def learned(self) -> list[Tensor]:
        """What has a gradient."""
        return [self.qkv, self.bias, self.factor]


class Contender(NamedTuple):
    """One way to compute the attention, and in what surroundings it runs, backward too."""

    attend: Attend
    surroundings: Callable[[], AbstractContextManager[Any]] = nullcontext


def main() -> None:
    """Races all shapes, one after the other."""
    options = parse()
    if options.tf32:
        torch.set_float32_matmul_precision("high")
    shapes = [
        (TYPES[name], window, heads)
        for name in options.types
        for window in options.windows
        for heads in options.heads
    ]
    device = torch.device(options.device)
    machine = describe(device) | {"tf32": options.tf32}
    console = Console(width=None if Console().is_terminal else 140)
    console.print(machine)
    if machine["interpreted"]:
        console.print("Triton's interpreter: the kernel's times say nothing")
    cells: list[dict[str, Any]] = []
    for dtype, window, heads in shapes:
        given = draw(dtype, window, heads, options, device)
        tokens, head_dim = window * window, options.head_dim
        contenders = tile_contenders(tokens, head_dim, dtype) if options.tiles else all_contenders()
        if options.only:
            contenders = {name: contenders[name] for name in options.only}
        results = race(contenders, given, options.rounds)
        cell = {
            "type": str(dtype).removeprefix("torch."),
            "window": window,
            "heads": heads,
            "head_dim": head_dim,
            "windows": given.qkv.shape[0] * given.qkv.shape[1],
            "shifted": given.mask is not None,
            "results": results,
        }
        cells.append(cell)
        console.print(tabulate(cell))
        if options.tiles:
            say_best_tile(console, cell, dtype)
        options.out.write_text(json.dumps({"machine": machine, "cells": cells}, indent=1) + "\n")
    console.print(f"written: {options.out}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", nargs="+", type=int, default=[6, 8, 12, 16, 24])
    parser.add_argument("--heads", nargs="+", type=int, default=[3, 6, 12, 24])
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=["bfloat16", "float32"])
    parser.add_argument("--tokens", type=int, default=2**18, help="of all windows together")
    parser.add_argument("--plain", action="store_true", help="windows without shift, no mask")
    parser.add_argument("--tf32", action="store_true", help="float32 products in TF32")
    parser.add_argument("--tiles", action="store_true", help="race the kernel's tiles")
    parser.add_argument("--only", nargs="+", help="names of contenders")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("attention_race.json"))
    return parser.parse_args()


def describe(device: torch.device) -> dict[str, Any]:
    """What the figures are of."""
    from triton import __version__, knobs

    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or "cpu",
        "torch": torch.__version__,
        "triton": __version__,
        "interpreted": bool(knobs.runtime.interpret),
    }


def draw(
    dtype: torch.dtype, window: int, heads: int, options: argparse.Namespace, device: torch.device
) -> Given:
    """Random input: images of 4 × 4 windows, as many as make the tokens that were asked for."""
    generator = torch.Generator().manual_seed(0)
    tokens = window * window
    grid = fit_window((4 * window, 4 * window), (window, window), shifted=not options.plain)
    images = max(1, round(options.tokens / (16 * tokens)))
    channels = 3 * heads * options.head_dim
    # Drawn once for one image on the CPU, so that every device gets the same, and varied by image.
    qkv = torch.randn(1, 16, tokens, channels, generator=generator).to(device)
    scales = torch.linspace(0.5, 2, images, device=device).view(-1, 1, 1, 1)
    mask = attention_mask(grid)
    return Given(
        (qkv * scales).to(dtype).requires_grad_(),
        (2 * torch.randn(heads, tokens, tokens, generator=generator)).to(device).requires_grad_(),
        torch.linspace(5, 20, heads).to(device).requires_grad_(),
        None if mask is None else mask.to(device),
    )


def all_contenders() -> dict[str, Contender]:
    """What is raced: the kernel first, whose figure the others are compared with."""
    return {
        "kernel": Contender(attend_kernel),
        **{
            f"sdpa {name}": Contender(attend_with_sdpa, functools.partial(sdpa_kernel, backend))
            for name, backend in SDPA_BACKENDS.items()
        },
        "sdpa compiled": Contender(compiled(attend_with_sdpa)),
        "flex compiled": Contender(compiled(attend_with_flex)),
        "reference compiled": Contender(compiled(attend_spelled_out)),
    }


def compiled(attend: Attend) -> Attend:
    """The same, compiled for the very shapes that it gets."""
    function: Attend = torch.compile(attend, dynamic=False, fullgraph=True)
    return function


def attend_kernel(given: Given) -> Tensor:
    """Simmim's Triton kernel."""
    return fused_attention(given.qkv, given.bias, given.mask, given.factor)


def attend_with_sdpa(given: Given) -> Tensor:
    """PyTorch's scaled_dot_product_attention, with bias and mask as one."""
    query, key, value = split(given)
    return attend_sdpa(query, key, value, masked_bias(given)).transpose(2, 3).flatten(3)


def attend_spelled_out(given: Given) -> Tensor:
    """Attention as written in the paper: what the compiler makes of it."""
    query, key, value = split(given)
    return attend_reference(query, key, value, masked_bias(given)).transpose(2, 3).flatten(3)


def attend_with_flex(given: Given) -> Tensor:
    """PyTorch's flex_attention, bias and mask as a modification of the score."""
    from torch.nn.attention.flex_attention import flex_attention

    query, key, value = split(given)
    bias = given.bias
    if given.mask is None:

        def modify(
            score: Tensor, window: Tensor, head: Tensor, row: Tensor, column: Tensor
        ) -> Tensor:
            return score + bias[head, row, column]

    else:
        regions = regions_of(given.mask)
        count = regions.shape[0]

        def modify(
            score: Tensor, window: Tensor, head: Tensor, row: Tensor, column: Tensor
        ) -> Tensor:
            sees = regions[window % count, row] == regions[window % count, column]
            return torch.where(sees, score + bias[head, row, column], -torch.inf)

    flat = (part.flatten(0, 1).contiguous() for part in (query, key, value))
    attended = flex_attention(*flat, score_mod=modify, scale=1.0)
    assert isinstance(attended, Tensor)
    return attended.view(query.shape).transpose(2, 3).flatten(3)


def split(given: Given) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, so that the dot product of the first two is the logit."""
    images, windows, tokens, _ = given.qkv.shape
    heads = given.bias.shape[0]
    apart = given.qkv.view(images, windows, tokens, 3, heads, -1).permute(3, 0, 1, 4, 2, 5)
    query, key, value = apart.unbind(0)
    query_directions = F.normalize(query.float(), dim=-1) * given.factor.view(-1, 1, 1)
    return query_directions.to(query.dtype), F.normalize(key.float(), dim=-1).to(key.dtype), value


def masked_bias(given: Given) -> Tensor:
    """The bias of each window and head, minus infinity where two tokens do not see each other."""
    bias = given.bias.unsqueeze(0)
    return bias if given.mask is None else bias.masked_fill(given.mask.unsqueeze(1), -torch.inf)


def tile_contenders(tokens: int, head_dim: int, dtype: torch.dtype) -> dict[str, Contender]:
    """The kernel with the tile that it would take, and with others."""
    from simmim.models.swin.kernels.triton_launch import RACED_TILES, Tile, choose_tile

    key = tokens, head_dim, dtype.itemsize

    @contextmanager
    def use(tile: Tile) -> Iterator[None]:
        before = RACED_TILES.get(key)
        RACED_TILES[key] = tile
        try:
            yield
        finally:
            RACED_TILES.pop(key)
            if before is not None:
                RACED_TILES[key] = before

    sides = [side for side in (16, 32, 64, 128) if side < 2 * tokens]
    tiles = [choose_tile(*key)] + [
        Tile(rows, columns, warps, stages)
        for rows in sides
        for columns in sides
        for warps in (2, 4, 8)
        for stages in (1, 2, 3)
        # Fewer pairs leave warps without work, more do not fit into their registers.
        if 128 <= rows * columns / warps <= 2048
    ]
    return {
        f"{tile.rows},{tile.columns},{tile.warps},{tile.stages}": Contender(
            attend_kernel, functools.partial(use, tile)
        )
        for tile in tiles
    }


def race(contenders: dict[str, Contender], given: Given, rounds: int) -> dict[str, dict[str, Any]]:
    """Compares each with the reference, then times all in turns. What cannot run says why."""
    torch.compiler.reset()
    target = torch.randn_like(given.qkv[..., : given.qkv.shape[3] // 3])
    expected = answer_in_float32(given, target)
    results: dict[str, dict[str, Any]] = {}
    running: dict[str, Contender] = {}
    for name, contender in contenders.items():
        try:
            error = compare(contender, given, target, expected)
            peak = peak_memory(contender, given, target)
        except Exception as reason:
            # Another contender's turn: kernels differ in what they take, and memory may run out.
            results[name] = {"not_run": f"{type(reason).__name__}: {reason}".split("\n")[0][:200]}
            release(given)
            continue
        results[name] = {"error": error, "peak_bytes": peak, "step_ms": [], "forward_ms": []}
        tolerance = TOLERANCES[given.qkv.dtype]
        if given.qkv.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
            tolerance = TF32_TOLERANCE
        if error < tolerance:
            running[name] = contender
        else:
            results[name]["not_run"] = f"wrong by {error:.1e} of the largest value"
    for _ in range(rounds):
        for name, contender in running.items():
            results[name]["step_ms"].append(milliseconds(contender, given, target))
            results[name]["forward_ms"].append(milliseconds(contender, given, None))
    return results


def step(contender: Contender, given: Given, target: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward: the output, and the gradients of what is learned."""
    with contender.surroundings():
        output = contender.attend(given)
        gradients = torch.autograd.grad(output, given.learned, target)
    return output.detach(), *gradients


def answer_in_float32(given: Given, target: Tensor) -> tuple[Tensor, ...]:
    """Output and gradients of attention spelled out in float32, image by image; to compare with."""
    outputs, gradients = [], []
    sums = [torch.zeros_like(given.bias), torch.zeros_like(given.factor)]
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    for image in range(given.qkv.shape[0]):
        qkv = given.qkv[image : image + 1].detach().float().requires_grad_()
        output, of_qkv, *others = step(
            Contender(attend_spelled_out),
            given._replace(qkv=qkv),
            target[image : image + 1].float(),
        )
        outputs.append(output)
        gradients.append(of_qkv)
        sums = [total + other for total, other in zip(sums, others, strict=True)]
    torch.set_float32_matmul_precision(precision)
    return torch.cat(outputs), torch.cat(gradients), *sums


def compare(
    contender: Contender, given: Given, target: Tensor, expected: Sequence[Tensor]
) -> float:
    """The largest difference of output and gradients, each over its largest value; NaN is infinite."""
    with torch.no_grad():  # what is compiled, is so once for each
        contender_output(contender, given)
    worst = 0.0
    for found, right in zip(step(contender, given, target), expected, strict=True):
        difference = ((found.float() - right).abs().max() / right.abs().max()).item()
        worst = max(worst, math.inf if math.isnan(difference) else difference)
    return worst


def contender_output(contender: Contender, given: Given) -> Tensor:
    """Forward alone."""
    with contender.surroundings():
        return contender.attend(given)


def peak_memory(contender: Contender, given: Given, target: Tensor) -> int | None:
    """Bytes that a step takes at most beside its input, on a GPU."""
    device = given.qkv.device
    if device.type != "cuda":
        return None
    release(given)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step(contender, given, target)
    return torch.cuda.max_memory_allocated(device) - before


def release(given: Given) -> None:
    """Gives back what a contender left behind, one that failed too."""
    gc.collect()
    if given.qkv.device.type == "cuda":
        torch.cuda.empty_cache()


def milliseconds(contender: Contender, given: Given, target: Tensor | None) -> float:
    """One step's time; without a target, one forward pass's without gradients."""

    def run() -> None:
        if target is not None:
            step(contender, given, target)
        else:
            with torch.no_grad():
                contender_output(contender, given)

    if given.qkv.device.type != "cuda":
        started = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - started)
    started_event, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # The first is not timed: it finds the caches as another contender left them, and while it runs, the
    # CPU gets ahead, so that what is timed is the GPU's work.
    run()
    started_event.record()
    run()
    ended.record()
    torch.cuda.synchronize(given.qkv.device)
    return float(started_event.elapsed_time(ended))


def tabulate(cell: dict[str, Any]) -> Table:
    """One shape's figures."""
    what = "shifted" if cell["shifted"] else "plain"
    table = Table(
        *(
            "contender",
            "step, ms",
            "middle half",
            "over the first",
            "forward, ms",
            "peak, MiB",
            "error",
        ),
        title=f"{cell['type']}, window {cell['window']} ({what}), {cell['heads']} heads of "
        f"{cell['head_dim']}, {cell['windows']} windows",
    )
    first: list[float] | None = None
    for name, result in cell["results"].items():
        if "not_run" in result:
            table.add_row(name, "–", "", "", "", "", result["not_run"])
            continue
        times = result["step_ms"]
        first = first or times
        low, middle, high = statistics.quantiles(times * 2, n=4, method="inclusive")
        ratio = statistics.median(mine / its for mine, its in zip(times, first, strict=True))
        peak = result["peak_bytes"]
        table.add_row(
            name,
            f"{middle:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{ratio:.2f}×",
            f"{statistics.median(result['forward_ms']):.3f}",
            "" if peak is None else f"{peak / 2**20:.0f}",
            f"{result['error']:.0e}",
        )
    return table


def say_best_tile(console: Console, cell: dict[str, Any], dtype: torch.dtype) -> None:
    """The line for RACED_TILES, where a tile beats the one that was taken."""
    timed = {name: r["step_ms"] for name, r in cell["results"].items() if "not_run" not in r}
    if not timed:
        return
    best = min(timed, key=lambda name: statistics.median(timed[name]))
    key = cell["window"] ** 2, cell["head_dim"], dtype.itemsize
    if best == next(iter(timed)):
        console.print(f"{key}: the tile that was chosen, {best}, is the fastest")
    else:
        console.print(f"    {key}: Tile({best}),", highlight=False)


if __name__ == "__main__":
    main()
