"""Compiles the fused attention's kernels for GPUs that need not be here, and tells what they take.

    python scripts/compile_attention.py
    python scripts/compile_attention.py --architectures 86 --windows 12 --types bfloat16

For each kernel: bytes of shared memory of a program, registers of a thread, and bytes of its stack,
onto which registers spill. A program may have 99 KiB of shared memory on an sm_86 or sm_89, and more on
an sm_80 or sm_90. Exits with 1 where a kernel takes more than 99 KiB.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from simmim.models.swin.kernels import triton_kernels
from simmim.models.swin.kernels.triton_launch import launch_options

TYPES = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}
KERNELS = ("forward", "backward_queries", "backward_keys", "backward_bias")
SHARED_MEMORY = 99 * 1024
# Pointers to numbers of the input's type; the others point to float32.
OF_INPUT_TYPE = {"qkv", "gradient", "attended", "qkv_gradient"}
COUNTS = {"region_windows", "heads", "windows", "shares"}


def main() -> None:
    """Compiles each kernel for each architecture, type and shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architectures", nargs="+", type=int, default=[80, 86, 90])
    parser.add_argument("--windows", nargs="+", type=int, default=[6, 8, 12, 16, 24])
    parser.add_argument("--head-dims", nargs="+", type=int, default=[32])
    parser.add_argument("--types", nargs="+", choices=TYPES, default=["bfloat16", "float32"])
    parser.add_argument("--dot", action="store_true", help="dot products, no shift (Swin V1)")
    options = parser.parse_args()
    print("  sm type     window head_dim tile         kernel           shared registers stack")
    fits = True
    for architecture in options.architectures:
        for name in options.types:
            for window in options.windows:
                for head_dim in options.head_dims:
                    for kernel in KERNELS:
                        tile, shared, registers, stack = compile_kernel(
                            kernel,
                            architecture,
                            name,
                            window * window,
                            head_dim,
                            is_dot=options.dot,
                        )
                        fits = fits and shared <= SHARED_MEMORY
                        print(
                            f"{architecture:>4} {name:<8} {window:>6} {head_dim:>8} {tile:<12} "
                            f"{kernel:<16} {shared:>6} {registers:>9} {stack:>5}",
                            flush=True,
                        )
    sys.exit(0 if fits else 1)


def compile_kernel(
    kernel: str, architecture: int, type_name: str, tokens: int, head_dim: int, *, is_dot: bool
) -> tuple[str, int, int, int]:
    """Its tile, shared memory, registers and stack; for cosines, windows are shifted."""
    qkv = torch.empty(1, tokens, 3, 1, head_dim, dtype=getattr(torch, type_name), device="meta")
    given = None if is_dot else torch.empty(1, device="meta")
    tile, constants = launch_options(qkv, given, given)
    options = {
        name: constants.pop(name) for name in ("num_warps", "num_stages", "enable_fp_fusion")
    }
    if is_dot:
        constants |= {"factor": None, "regions": None, "factor_parts": None}
    function = getattr(triton_kernels, kernel)
    constants = {name: constants[name] for name in function.arg_names if name in constants}
    signature: dict[str, str] = {}
    for name in function.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in COUNTS:
            signature[name] = "i32"
        elif name == "regions":
            signature[name] = "*i64"
        else:
            signature[name] = TYPES[type_name] if name in OF_INPUT_TYPE else "*fp32"
    # As at a launch: what PyTorch allocates begins at a multiple of 16 bytes.
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(function.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(function, signature, constants, aligned)
    compiled: Any = triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options=options
    )
    registers, stack = read_usage(compiled.asm["cubin"])
    return ",".join(map(str, tile)), compiled.metadata.shared, registers, stack


def read_usage(machine_code: bytes) -> tuple[int, int]:
    """Registers and bytes of stack, by the cuobjdump that comes with Triton."""
    program = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        shown = subprocess.run(
            [program, "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", shown)
    assert found is not None, shown
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    main()
