"""Carries three position biases to larger images and windows, direct and fine-tuned.

Writes the form of Swin V2's table 1 as `table.md`, `table.csv` and `table.png`; see
`window_transfer.yaml` for what it runs and `python scripts/window_transfer.py --help` for its options.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import hydra
from commands import run
from omegaconf import DictConfig

NAMES = {"table": "table, bicubic", "linear_cpb": "linear CPB", "log_cpb": "log CPB"}


class Cell(NamedTuple):
    """Top-1 of one position bias at one size; at the size of training, both are the same."""

    position_bias: str
    window_size: int
    image_size: int
    direct: float
    finetuned: float


@hydra.main(version_base="1.3", config_path=".", config_name="window_transfer")
def main(config: DictConfig) -> None:
    """Runs all of it and writes the table."""
    out = Path(config.out)
    cells = [cell for bias in config.position_biases for cell in follow(bias, config, out)]
    write_csv(cells, out / "table.csv")
    (out / "table.md").write_text(as_markdown(cells))
    plot(cells, out / "table.png")
    print(as_markdown(cells))
    print(f"table.md, table.csv and table.png are in {out}")


def follow(bias: str, config: DictConfig, out: Path) -> list[Cell]:
    """One position bias: trained at the first size, then carried from there to each other one."""
    folder = out / bias
    model = ["model=swinv2_nano", f"model.position_bias={bias}"]
    sizes = [f"model.image_size={config.image_size}", f"model.window_size={config.window_size}"]
    seeded = f"seed={config.seed}"
    run("pretrain", folder / "pretrain", *model, *sizes, *config.pretrain, seeded)
    start = f"init.checkpoint={folder / 'pretrain'}"
    trained = run("finetune", folder / "finetune", start, *config.finetune, seeded)
    top1 = trained["metrics"]["val/top1"]
    cells = [Cell(bias, config.window_size, config.image_size, top1, top1)]
    for scale in config.scales:
        window_size, image_size = (
            round(scale * config.window_size),
            round(scale * config.image_size),
        )
        carried = run(
            "transfer",
            folder / f"transfer_{image_size}",
            f"init.checkpoint={folder / 'finetune'}",
            f"model.image_size={image_size}",
            f"model.window_size={window_size}",
            f"data.detail={scale}",
            *config.transfer,
            seeded,
        )["metrics"]
        direct, finetuned = carried["direct/top1"], carried["val/top1"]
        cells.append(Cell(bias, window_size, image_size, direct, finetuned))
    return cells


def write_csv(cells: Sequence[Cell], path: Path) -> None:
    """One row a cell."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Cell._fields)
        writer.writerows(cells)


def as_markdown(cells: Sequence[Cell]) -> str:
    """The paper's form: a row a position bias, a column a size, `direct / fine-tuned`."""
    sizes = sorted({(cell.window_size, cell.image_size) for cell in cells})
    biases = list(dict.fromkeys(cell.position_bias for cell in cells))
    place = {(cell.position_bias, cell.image_size): cell for cell in cells}
    lines = [
        ["position bias", *(f"W{window} I{image}" for window, image in sizes)],
        ["---"] * (len(sizes) + 1),
    ]
    for bias in biases:
        row = [place[bias, image] for _, image in sizes]
        first, *rest = row
        carried = (f"{100 * cell.direct:.1f} / {100 * cell.finetuned:.1f}" for cell in rest)
        lines.append([NAMES[bias], f"{100 * first.direct:.1f}", *carried])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plot(cells: Sequence[Cell], path: Path) -> None:
    """Top-1 against image size: direct dashed, fine-tuned solid."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for bias in dict.fromkeys(cell.position_bias for cell in cells):
        own = [cell for cell in cells if cell.position_bias == bias]
        images = [cell.image_size for cell in own]
        (line,) = axes.plot(
            images, [100 * cell.finetuned for cell in own], marker="o", label=NAMES[bias]
        )
        direct = [100 * cell.direct for cell in own]
        axes.plot(images, direct, marker="o", linestyle="--", color=line.get_color())
    axes.set_xticks(
        sorted({cell.image_size for cell in cells}),
        [
            f"{image} px\nwindow {window}"
            for image, window in sorted({(cell.image_size, cell.window_size) for cell in cells})
        ],
    )
    axes.set_ylabel("top-1, %")
    axes.set_title("Carried to larger images and windows\nsolid: fine-tuned, dashed: direct")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
