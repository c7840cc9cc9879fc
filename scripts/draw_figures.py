"""Draws the figures of docs/how-it-works.md, from the package's own functions where it has them.

    python scripts/draw_figures.py                 into docs/images/
    python scripts/draw_figures.py --out FOLDER

So a figure shows what the code does: windows, regions, offsets and biases come from
`simmim.models.swin`, masks from `simmim.models.masking`, sizes from an encoder.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from simmim.data.synthetic.dataset import DemoImages
from simmim.models.masking import RandomMaskGenerator, enlarge
from simmim.models.swin import SwinTransformer, create_encoder
from simmim.models.swin.position_bias import ContinuousPositionBias, normalised_offsets
from simmim.models.swin.windows import WindowGrid, attention_mask, fit_window, partition_windows

IMAGES = Path(__file__).parent.parent / "docs" / "images"
# The same file for the same figure, with letters that look alike everywhere.
STYLE: Any = {  # matplotlib's type names each of its settings
    "svg.hashsalt": "simmim",
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.titlesize": 9,
    "figure.facecolor": "white",
}
COLOURS = ("#8ecae6", "#ffb703", "#95d5b2", "#f4a3b5")


def main() -> None:
    """Writes every figure as SVG."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder to write to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        with plt.rc_context(STYLE):
            figure = draw()
            figure.savefig(out / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
            plt.close(figure)
        print(out / f"{name}.svg")


def window_of_tokens(grid: WindowGrid) -> tuple[np.ndarray, np.ndarray]:
    """Of each token of the map: the number of its window, and of its region within the window.

    Tokens of a window may attend to each other if they are of one region.
    """
    height, width = grid.feature_size
    places = torch.arange(height * width).view(1, height, width, 1).float()
    cut = partition_windows(places, grid)[0, :, :, 0].long()
    window, region = torch.zeros(height * width).long(), torch.zeros(height * width).long()
    window[cut] = torch.arange(len(cut))[:, None].expand_as(cut)
    mask = attention_mask(grid)
    if mask is not None:
        # A token's region is named by the first token that it may attend to.
        first = (~mask).int().argmax(dim=2)
        for number, row in enumerate(first):
            region[cut[number]] = torch.searchsorted(row.unique(), row)
    return window.view(height, width).numpy(), region.view(height, width).numpy()


def draw_windows() -> Figure:
    """Windows, shifted windows, and the mask of the window whose tokens come from four corners."""
    feature_size, side = (8, 8), (4, 4)
    plain = fit_window(feature_size, side, shifted=False)
    shifted = fit_window(feature_size, side, shifted=True)
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
    for axis, grid, title in (
        (axes[0], plain, "a block: windows of 4 × 4 tokens"),
        (axes[1], shifted, "the next: shifted by 2, wrapped round"),
    ):
        window, region = window_of_tokens(grid)
        for (row, column), number in np.ndenumerate(window):
            place = (column, row)
            axis.add_patch(Rectangle(place, 1, 1, facecolor=COLOURS[number], edgecolor="white"))
            letter = "abcd"[region[row, column]] if grid is shifted else ""
            axis.text(column + 0.5, row + 0.5, letter, ha="center", va="center", fontsize=8)
        outline(axis, window)
        frame_map(axis, feature_size, title)
    mask = attention_mask(shifted)
    assert mask is not None
    axes[2].imshow(~mask[-1], cmap="Greys", vmin=-0.3, vmax=1.6, interpolation="nearest")
    axes[2].set_title("pairs of the last window's 16 tokens:\ndark may attend to each other")
    axes[2].set_xlabel("key")
    axes[2].set_ylabel("query")
    axes[2].set_xticks([])
    axes[2].set_yticks([])
    return figure


def outline(axis: Axes, window: np.ndarray) -> None:
    """Lines where neighbouring tokens are of different windows."""
    for row, column in np.argwhere(window[:, 1:] != window[:, :-1]):
        axis.plot([column + 1] * 2, [row, row + 1], color="black", linewidth=1.5)
    for row, column in np.argwhere(window[1:] != window[:-1]):
        axis.plot([column, column + 1], [row + 1] * 2, color="black", linewidth=1.5)


def frame_map(axis: Axes, feature_size: tuple[int, int], title: str) -> None:
    """A feature map's frame, its first token at the top left."""
    height, width = feature_size
    axis.set_xlim(-0.05, width + 0.05)
    axis.set_ylim(height + 0.05, -0.05)
    axis.set_aspect("equal")
    axis.axis("off")
    axis.set_title(title)


def draw_simmim() -> Figure:
    """An image, what the model sees, the maps of the stages, and where the loss is taken."""
    encoder = create_encoder("swinv2_t", image_size=192, window_size=12)
    picture, _ = DemoImages(split="val", size=4, image_size=encoder.image_size).load(3)
    image = picture.permute(1, 2, 0).numpy()
    masks = RandomMaskGenerator(encoder.image_size, token_size=encoder.patch_size)
    mask = enlarge(masks(torch.tensor([0]), step=0), encoder.patch_size)[0].numpy()
    figure, axes = plt.subplots(
        1, 4, figsize=(11, 2.9), layout="constrained", width_ratios=(1, 1, 1.5, 1)
    )
    show_image(axes[0], image, f"image, {encoder.image_size[0]} px")
    hidden = np.where(mask[..., None], 230, image)
    share = f"{masks.num_masked} of {masks.num_patches}"
    show_image(axes[1], hidden, f"{share} patches of {masks.patch_size} px\nbecome the mask token")
    draw_stages(axes[2], encoder)
    counted = np.where(mask[..., None], image, 255)
    show_image(axes[3], counted, "the loss (L1) compares pixels\nwhere they were hidden")
    return figure


def draw_stages(axis: Axes, encoder: SwinTransformer) -> None:
    """The stages' feature maps, each a square as wide as it has tokens, cut into its windows."""
    left, unit = 0.0, encoder.strides[0] / encoder.image_size[0]
    for stride, width, window in zip(
        encoder.strides, encoder.channels, encoder.window_sizes, strict=True
    ):
        tokens = encoder.image_size[0] // stride
        size = tokens * unit
        lines = np.arange(0, tokens + 1, window[0]) * unit
        axis.add_patch(Rectangle((left, 0), size, size, facecolor=COLOURS[0]))
        axis.hlines(lines, left, left + size, color="black", linewidth=0.8)
        axis.vlines(left + lines, 0, size, color="black", linewidth=0.8)
        axis.text(left + size / 2, size + 0.05, f"{tokens}²\n× {width}", ha="center", fontsize=7)
        left += size + 0.25
    axis.set_xlim(-0.05, left)
    axis.set_ylim(-0.3, 1.4)
    axis.set_aspect("equal")
    axis.axis("off")
    axis.set_title("encoder: all tokens, four stages\n(tokens × channels, and windows)")
    axis.text(left - 0.2, -0.2, "then the head: linear, pixel shuffle", ha="right", fontsize=8)


def show_image(axis: Axes, image: np.ndarray, title: str) -> None:
    """A picture without axes."""
    axis.imshow(image.astype(np.uint8), interpolation="nearest")
    axis.axis("off")
    axis.set_title(title)


def draw_position_bias() -> Figure:
    """Offsets as the network takes them at several windows, and one network read at two of them."""
    pretrained = (8, 8)
    figure, axes = plt.subplots(
        1, 4, figsize=(11, 2.9), layout="constrained", width_ratios=(1.3, 1.3, 1, 1)
    )
    for axis, log_spaced in ((axes[0], False), (axes[1], True)):
        for window, colour in ((24, "#f4a3b5"), (16, "#ffb703"), (8, "#023047")):
            inputs = normalised_offsets((window, window), pretrained, log_spaced=log_spaced)
            tokens = np.arange(1 - window, window)
            axis.plot(tokens, inputs[:, 0, 0], color=colour, label=f"window {window}")
        # The last of the loop is the window that it was trained with.
        seen = inputs.max().item()
        axis.axhspan(
            -seen, seen, color=COLOURS[0], alpha=0.4, linewidth=0, label="seen in training"
        )
        axis.set_xlabel("offset in tokens")
        axis.set_ylabel("input of the network")
        axis.set_title("linear-spaced" if not log_spaced else "log-spaced")
    axes[0].set_ylim(-3.6, 3.6)
    axes[1].set_ylim(-3.6, 3.6)
    axes[0].legend(fontsize=7, loc="upper left")
    torch.manual_seed(3)
    small = ContinuousPositionBias(1, pretrained, pretrained, log_spaced=True)
    large = ContinuousPositionBias(1, (24, 24), pretrained, log_spaced=True)
    # Steeper than at the start of training, for its shape to show.
    steep = small.mlp[2].weight
    assert isinstance(steep, torch.Tensor)
    torch.nn.init.normal_(steep, std=0.08)
    large.load_state_dict(small.state_dict())
    biases = [by_offset(small), by_offset(large)]
    lowest, highest = min(map(np.min, biases)), max(map(np.max, biases))
    for axis, bias, side in zip(axes[2:], biases, (8, 24), strict=True):
        reach = side - 0.5
        shown = axis.imshow(
            bias, extent=(-reach, reach, reach, -reach), vmin=lowest, vmax=highest, cmap="viridis"
        )
        axis.add_patch(Rectangle((-7.5, -7.5), 15, 15, fill=False, edgecolor="white"))
        axis.set_title(f"one network's bias,\nwindow {side}")
        axis.set_xlabel("offset in tokens")
        axis.set_xticks([1 - side, 0, side - 1])
        axis.set_yticks([1 - side, 0, side - 1])
    figure.colorbar(shown, ax=axes[3], shrink=0.8)
    return figure


@torch.no_grad()
def by_offset(bias: ContinuousPositionBias) -> np.ndarray:
    """The first head's bias of each offset, `2 · window − 1` a side."""
    values = torch.empty(len(bias.offsets))
    values[bias.index.flatten()] = bias()[0].flatten()
    side = round(len(values) ** 0.5)
    return values.view(side, side).numpy()


def draw_block() -> Figure:
    """The block of V1 (pre-norm) beside that of V2 (res-post-norm)."""
    figure, axes = plt.subplots(1, 2, figsize=(6, 4), layout="constrained")
    pre = ("LayerNorm", "attention", "LayerNorm", "MLP")
    post = ("attention", "LayerNorm", "MLP", "LayerNorm")
    draw_branches(axes[0], pre, "V1, norm=pre\nx + branch(norm(x))")
    draw_branches(axes[1], post, "V2, norm=res_post\nx + norm(branch(x))")
    return figure


def draw_branches(axis: Axes, layers: tuple[str, ...], title: str) -> None:
    """Two residual branches beside the main one, from below to above."""
    axis.annotate("", (0, 9), (0, 0), arrowprops={"arrowstyle": "-|>", "color": "black"})
    for branch, names in enumerate((layers[:2], layers[2:])):
        bottom = 0.7 + 4.2 * branch
        for place, name in enumerate(names):
            colour = "#ffd166" if name == "LayerNorm" else "#8ecae6"
            corner = (0.7, bottom + 0.5 + 1.3 * place)
            axis.add_patch(
                FancyBboxPatch(corner, 2.2, 0.8, "round,pad=0.05", facecolor=colour, linewidth=0.8)
            )
            axis.text(1.8, corner[1] + 0.4, name, ha="center", va="center")
        path = "angle,angleA=0,angleB=90,rad=4"
        axis.add_patch(arrow((0, bottom), (1.8, bottom + 0.42), path))
        axis.add_patch(arrow((1.8, bottom + 1.35), (1.8, bottom + 1.72), None))
        axis.add_patch(
            arrow((1.8, bottom + 2.68), (0.17, bottom + 3.1), "angle,angleA=90,angleB=0,rad=4")
        )
        axis.text(0, bottom + 3.1, "+", ha="center", va="center", bbox=PLUS, fontsize=11)
    axis.text(0, -0.3, "x", ha="center", va="top")
    axis.set_xlim(-0.8, 3.2)
    axis.set_ylim(-0.9, 9.2)
    axis.axis("off")
    axis.set_title(title)


PLUS = {"boxstyle": "circle,pad=0.15", "facecolor": "white"}


def arrow(
    start: tuple[float, float], end: tuple[float, float], path: str | None
) -> FancyArrowPatch:
    """An arrow from one point to another, round the corner where `path` says so."""
    return FancyArrowPatch(
        start,
        end,
        arrowstyle="-|>",
        connectionstyle=path or "arc3",
        mutation_scale=8,
        linewidth=0.8,
    )


FIGURES: dict[str, Callable[[], Figure]] = {
    "windows": draw_windows,
    "simmim": draw_simmim,
    "position_bias": draw_position_bias,
    "block": draw_block,
}

if __name__ == "__main__":
    main()
