"""Measures activation amplitudes as depth grows: pre-norm against res-post-norm, untrained and trained.

    python scripts/amplitude.py
    python scripts/amplitude.py --blocks 6 18 42 --steps 2000 --batch-size 64

The form of Swin V2's figure 2 in small: encoders that differ in the place of their norms alone,
pretrained with SimMIM on drawn pictures. Writes `amplitude.csv`, `amplitude.md` and `amplitude.png`.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console

Norm = Literal["pre", "res_post"]
NORMS: dict[Norm, str] = {"pre": "pre-norm", "res_post": "res-post-norm"}
IMAGE_SIZE = 32
MASK_PATCH = 4
HELD_OUT = 64


class Cell(NamedTuple):
    """One encoder at one time: its blocks' amplitudes in order, and its held-out masked L1.

    `blocks` counts those of the second stage, which is the deep one.
    """

    norm: str
    blocks: int
    seed: int
    step: int
    amplitudes: list[float]
    loss: float

    @property
    def growth(self) -> float:
        """The largest amplitude over the smallest, of the deep stage: merging starts both again."""
        deep = self.amplitudes[-self.blocks :]
        return max(deep) / min(deep)


def main() -> None:
    """Trains all encoders, one after the other, and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--blocks", nargs="+", type=int, default=[2, 6, 14])
    parser.add_argument("--untrained-blocks", nargs="*", type=int, default=[30, 62])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("outputs/amplitude"))
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    cells: list[Cell] = []
    for seed in options.seeds:
        for blocks in (*options.blocks, *options.untrained_blocks):
            for norm, name in NORMS.items():
                cells += follow(
                    norm,
                    blocks,
                    seed,
                    steps=options.steps if blocks in options.blocks else 0,
                    batch_size=options.batch_size,
                    learning_rate=options.learning_rate,
                )
                last = cells[-1]
                Console(stderr=True).print(
                    f"{name}, {blocks} blocks, seed {seed}: largest over smallest after "
                    f"{last.step} steps {last.growth:.3g}, masked L1 {last.loss:.3f}; "
                    f"{time.monotonic() - started:.0f} s in all",
                    soft_wrap=True,
                )
                write_csv(cells, options.out / "amplitude.csv")
    (options.out / "amplitude.md").write_text(as_markdown(cells))
    plot(cells, options.out / "amplitude.png")
    print(as_markdown(cells))
    print(f"amplitude.csv, amplitude.md and amplitude.png are in {options.out}")


def follow(
    norm: Norm, blocks: int, seed: int, *, steps: int, batch_size: int, learning_rate: float
) -> list[Cell]:
    """One encoder at its initial values and, where it is trained, after that.

    Two stages of 32 and 64 channels, two blocks in the first; all else as in Swin V2.
    """
    import torch

    from simmim import create_encoder
    from simmim.analysis import activation_amplitudes
    from simmim.models.masking import RandomMaskGenerator
    from simmim.models.simmim import SimMIM

    torch.manual_seed(seed)
    encoder = create_encoder(
        "swinv2_t",
        image_size=IMAGE_SIZE,
        window_size=4,
        patch_size=4,
        embed_dim=32,
        depths=(2, blocks),
        num_heads=(1, 2),
        norm=norm,
    )
    model = SimMIM(encoder)
    mask = RandomMaskGenerator(IMAGE_SIZE, MASK_PATCH, encoder.patch_size, seed=seed)
    held_out = draw_pictures("val", range(HELD_OUT), seed)
    cells = []
    for step in sorted({0, steps}):
        if step:
            train(model, mask, seed, steps=steps, batch_size=batch_size, rate=learning_rate)
        amplitudes = [block.output for block in activation_amplitudes(encoder, held_out)]
        with torch.no_grad():
            loss = float(masked_loss(model, held_out, mask, step=-1))
        cells.append(Cell(norm, blocks, seed, step, amplitudes, loss))
    return cells


def train(model: Any, mask: Any, seed: int, *, steps: int, batch_size: int, rate: float) -> None:
    """SimMIM by the project's AdamW recipe: warm-up over a tenth of the steps, then a cosine."""
    from torch.nn.utils import clip_grad_norm_

    from simmim.training.optim import AdamWRecipe

    recipe = AdamWRecipe(
        lr=rate, weight_decay=0.05, lr_batch_size=None, warmup_steps=max(1, steps // 10)
    )
    optimizer = recipe.optimizer(model, batch_size, model.encoder.depths)
    scheduler = recipe.scheduler(optimizer, total_steps=steps, steps_per_epoch=steps)
    model.train()
    for step in range(steps):
        places = range(step * batch_size, (step + 1) * batch_size)
        loss = masked_loss(model, draw_pictures("train", places, seed), mask, step=step)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), recipe.clip_norm or float("inf"))
        optimizer.step()
        scheduler.step()


def masked_loss(model: Any, images: Any, mask: Any, *, step: int) -> Any:
    """SimMIM's loss on these images."""
    import torch

    from simmim.models.losses import masked_l1
    from simmim.models.masking import enlarge

    masked = mask(torch.arange(len(images)), step=step)
    return masked_l1(model(images, masked), images, enlarge(masked, model.encoder.patch_size))


@cache
def draw_pictures(split: str, places: range, seed: int) -> Any:
    """Normalised pictures of the demo, the same for all encoders of a seed."""
    import torch

    from simmim.data.synthetic.dataset import DemoImages
    from simmim.utils.normalization import Normalisation

    size = (IMAGE_SIZE, IMAGE_SIZE)
    source = DemoImages(split=split, size=places.stop, image_size=size, seed=seed)
    return Normalisation().normalise(torch.stack([source.load(place)[0] for place in places]))


def write_csv(cells: Sequence[Cell], path: Path) -> None:
    """One row a block."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["norm", "blocks", "seed", "step", "loss", "block", "amplitude"])
        for cell in cells:
            for block, amplitude in enumerate(cell.amplitudes, start=1):
                writer.writerow([*cell[:4], cell.loss, block, amplitude])


def as_markdown(cells: Sequence[Cell]) -> str:
    """Largest over smallest amplitude, mean ± standard deviation over seeds: a row a norm and depth."""
    steps = sorted({cell.step for cell in cells})
    trained = [f"after {step} steps" for step in steps[1:]]
    lines = [["norm", "blocks", "at initial values", *trained, "held-out masked L1"]]
    lines.append(["---"] * len(lines[0]))
    for norm, name in NORMS.items():
        for blocks in sorted({cell.blocks for cell in cells}):
            own = [cell for cell in cells if (cell.norm, cell.blocks) == (norm, blocks)]
            by_step = [[cell for cell in own if cell.step == step] for step in steps]
            growth = [spread([cell.growth for cell in at], 2) for at in by_step]
            loss = spread([cell.loss for cell in by_step[-1]], 3)
            lines.append([name, str(blocks), *growth, loss])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(values: Sequence[float], digits: int) -> str:
    """`3.21 ± 0.10`; a dash for nothing."""
    if not values:
        return "–"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def plot(cells: Sequence[Cell], path: Path) -> None:
    """Amplitude by block: a panel a depth, dashed at initial values, solid after training."""
    from matplotlib.figure import Figure

    depths = sorted({cell.blocks for cell in cells if cell.step})
    figure = Figure(figsize=(3.2 * len(depths) + 0.6, 3.4), layout="constrained")
    panels = figure.subplots(1, len(depths), sharey=True, squeeze=False)[0]
    for axes, blocks in zip(panels, depths, strict=True):
        for norm, colour, marker in zip(NORMS, ("#D55E00", "#0072B2"), ("s", "o"), strict=True):
            for cell in cells:
                if (cell.norm, cell.blocks) != (norm, blocks):
                    continue
                is_trained = cell.step > 0
                first = cell.seed == cells[0].seed
                label = f"{NORMS[norm]}, {'trained' if is_trained else 'initial'}"
                axes.plot(
                    range(1, len(cell.amplitudes) + 1),
                    cell.amplitudes,
                    "-" if is_trained else "--",
                    color=colour,
                    marker=marker if is_trained else "",
                    markersize=3,
                    linewidth=1,
                    label=label if first else None,
                )
        axes.set(title=f"2 + {blocks} blocks", xlabel="block", yscale="log")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("variance of the block's output")
    panels[-1].legend(fontsize=7)
    figure.suptitle("Activation amplitude by depth; a line a seed", fontsize=10)
    figure.savefig(
        path,
        dpi=110,
        metadata={
            "Title": "Activation amplitude by depth",
            "Description": "Pre-norm against res-post-norm, before and after training, by block",
        },
    )


if __name__ == "__main__":
    main()
