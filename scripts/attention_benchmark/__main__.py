"""Times window attention, forward and backward: the fused Triton kernel against PyTorch's own.

    python scripts/attention_benchmark
    python scripts/attention_benchmark --windows 12 --heads 4 --types bfloat16 --tiles

Every implementation starts from the output of the qkv projection and ends with the input of the next
projection, so its time includes layout, normalisation, bias and mask. Outputs and gradients are first
compared with float32 attention; an implementation that is wrong is not timed. The others are timed in
turns, once per round. The table shows the median step time with its middle half, and the peak memory
(GPUs only). All measurements go to --out, which is rewritten after each shape.

With --tiles, the tiles of the Triton kernel are compared instead, and the lines to add to TUNED_TILES
in simmim/models/swin/kernels/triton_launch.py are printed.

Without a GPU, use `--device cpu --tokens 1000`; with TRITON_INTERPRET=1 this includes the kernel, to
check its results: the interpreter's times mean nothing.
"""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from implementations import create_implementations, create_tile_implementations, draw_inputs
from rich.console import Console
from table import print_best_tile, tabulate
from timing import benchmark

TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def main() -> None:
    """Benchmarks every combination of type, window and heads."""
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
    machine = describe_machine(device) | {"tf32": options.tf32}
    console = Console(width=None if Console().is_terminal else 140)
    console.print(machine)
    if machine["interpreted"]:
        console.print("Triton's interpreter: the kernel's times say nothing")
    cells: list[dict[str, Any]] = []
    for dtype, window, heads in shapes:
        inputs = draw_inputs(
            dtype,
            window,
            heads,
            head_dim=options.head_dim,
            total_tokens=options.tokens,
            is_shifted=not options.plain,
            device=device,
        )
        implementations = (
            create_tile_implementations(window * window, options.head_dim, dtype)
            if options.tiles
            else create_implementations()
        )
        if options.only:
            implementations = {name: implementations[name] for name in options.only}
        cell = {
            "type": str(dtype).removeprefix("torch."),
            "window": window,
            "heads": heads,
            "head_dim": options.head_dim,
            "windows": inputs.qkv.shape[0] * inputs.qkv.shape[1],
            "shifted": inputs.mask is not None,
            "results": benchmark(implementations, inputs, options.rounds),
        }
        cells.append(cell)
        console.print(tabulate(cell))
        if options.tiles:
            print_best_tile(console, cell, dtype)
        options.out.write_text(json.dumps({"machine": machine, "cells": cells}, indent=1) + "\n")
    console.print(f"written: {options.out}")


def parse() -> argparse.Namespace:
    """Parses the command line."""
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
    parser.add_argument("--tiles", action="store_true", help="time the tiles of the Triton kernel")
    parser.add_argument("--only", nargs="+", help="names of implementations")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("attention_benchmark.json"))
    return parser.parse_args()


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The device and the versions that the times depend on."""
    from triton import __version__, knobs

    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or "cpu",
        "torch": torch.__version__,
        "triton": __version__,
        "interpreted": bool(knobs.runtime.interpret),
    }


if __name__ == "__main__":
    main()
