"""Measures what checkpointed blocks and sequential attention save: peak memory of a training step.

    python scripts/memory_table.py
    python scripts/memory_table.py --model swinv2_b --sizes 192/12 --batch-size 8

Each cell is a process of its own: SwinV2 with SimMIM's head and loss, forward and backward, gradients
allocated before. On a GPU it is the allocator's peak, on a CPU the process's; what stood before the
step is taken off. Writes a Markdown table to the terminal.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

from rich.console import Console

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointed blocks": {"checkpoint_blocks": "all"},
    "sequential attention": {"sequential_attention": 1},
    "both": {"checkpoint_blocks": "all", "sequential_attention": 1},
}


def main() -> None:
    """Measures all cells, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", default="swinv2_t")
    parser.add_argument("--sizes", nargs="+", default=["192/12", "768/24"], help="image/window")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(measure(**json.loads(options.cell))))
        return
    lines = ["| | " + " | ".join(options.sizes) + " |", "| --- |" + " --- |" * len(options.sizes)]
    plain: dict[str, float] = {}
    for way, encoder in WAYS.items():
        cells = []
        for size in options.sizes:
            result = in_own_process(options.model, size, options.batch_size, encoder)
            plain.setdefault(size, result["bytes"])
            cells.append(
                f"{result['bytes'] / 2**20:.0f} MiB ({plain[size] / result['bytes']:.1f}× less), "
                f"{result['seconds']:.1f} s"
            )
        lines.append(f"| {way} | {' | '.join(cells)} |")
        Console(stderr=True).print(lines[-1], soft_wrap=True)
    print("\n".join(lines))


def in_own_process(model: str, size: str, batch_size: int, encoder: dict[str, Any]) -> Any:
    """One cell, in a process that has computed nothing else."""
    image_size, window_size = map(int, size.split("/"))
    cell = json.dumps(
        {
            "model": model,
            "image_size": image_size,
            "window_size": window_size,
            "batch_size": batch_size,
            "encoder": encoder,
        }
    )
    done = subprocess.run(
        [sys.executable, __file__, "--cell", cell],
        check=True,
        capture_output=True,
        text=True,
        # glibc then gives back what is freed: the process is as large as what stands in it.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
    )
    return json.loads(done.stdout)


def measure(
    *, model: str, image_size: int, window_size: int, batch_size: int, encoder: dict[str, Any]
) -> dict[str, float]:
    """Bytes that a step's activations take at their peak, and its seconds."""
    import torch

    from simmim import create_encoder
    from simmim.models.losses import masked_l1
    from simmim.models.masking import RandomMaskGenerator, enlarge
    from simmim.models.simmim import SimMIM
    from simmim.utils.devices import peak_memory_bytes

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    built = create_encoder(model, image_size=image_size, window_size=window_size, **encoder)
    whole = SimMIM(built).to(device)
    for parameter in whole.parameters():
        parameter.grad = torch.ones_like(parameter)
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    mask_generator = RandomMaskGenerator(image_size, patch_size=32, token_size=built.patch_size)
    mask = mask_generator(torch.arange(batch_size, device=device), step=0)
    before = memory_in_use(device)
    started = time.perf_counter()
    loss = masked_l1(whole(images, mask), images, enlarge(mask, built.patch_size))
    loss.backward()  # type: ignore[no-untyped-call]
    if device.type == "cuda":
        torch.cuda.synchronize()
    return {"bytes": peak_memory_bytes(device) - before, "seconds": time.perf_counter() - started}


def memory_in_use(device: Any) -> int:
    """Bytes that stand before the step."""
    import psutil
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    main()
