"""Figures of the diagnostics: PNGs on a light background with a colour-blind-safe palette.

Each has a text alternative in its metadata (`Description`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from simmim.analysis.amplitude import BlockAmplitude
from simmim.analysis.attention import BlockDistance, BlockMap
from simmim.analysis.pca import FeaturePictures
from simmim.analysis.position_bias import BlockAttention
from simmim.evaluate.probe import Probe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito (2008) without yellow, which is too light for lines.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_GREY = "#767676"
_DPI = 100
_SHOWN_IMAGES = 4
_SHOWN_HEADS = 3
# The minimum logit range of a bias's colour scale: smaller differences hardly affect attention.
_LEAST_SPAN = 1.0


def draw_amplitudes(path: Path, models: Mapping[str, Sequence[BlockAmplitude]]) -> None:
    """Amplitudes of blocks and branches by depth, on a logarithmic axis, as in figure 2 of Swin V2."""
    title = "Activation amplitude by depth"
    says = (
        f"Variance of the main branch and of both residual branches by block: {', '.join(models)}"
    )
    with _figure(path, title, says, size=(9, 3.6)) as figure:
        panels = figure.subplots(1, 3, sharey=True)
        for axes, branch, name in zip(
            panels,
            ("output", "attention", "mlp"),
            ("main branch, after the block", "added by attention", "added by the MLP"),
            strict=True,
        ):
            for number, (model, blocks) in enumerate(models.items()):
                values = [getattr(block, branch) for block in blocks]
                # A branch that is 0, as in a newly initialised V2 block, has no logarithm.
                shown = [value if value > 0 else float("nan") for value in values]
                depths = range(1, len(blocks) + 1)
                axes.plot(depths, shown, **_line(number), label=model)
            axes.set(yscale="log")
            _by_block(axes, name)
        panels[0].set_ylabel("variance of activations")
        panels[0].legend(fontsize=8)


def draw_distances(path: Path, models: Mapping[str, Sequence[BlockDistance]]) -> None:
    """Mean attention distances: a dot per head, a line for the mean, and one for uniform attention."""
    title = "How far heads look"
    says = f"Mean attention distance in pixels by block and head: {', '.join(models)}"
    with _figure(path, title, says, size=(4.5 * len(models), 3.6)) as figure:
        panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
        for axes, (number, (model, blocks)) in zip(panels, enumerate(models.items()), strict=True):
            depths = range(1, len(blocks) + 1)
            uniform = [block.uniform for block in blocks]
            axes.plot(depths, uniform, "--", color=_GREY, label="equal attention")
            means = [float(block.heads.mean()) for block in blocks]
            axes.plot(depths, means, **_line(number), label="mean of heads")
            for depth, block in zip(depths, blocks, strict=True):
                heads = block.heads.tolist()
                axes.plot([depth] * len(heads), heads, ".", color=_line(number)["color"], alpha=0.4)
            axes.set(ylim=(0, None))
            _by_block(axes, model)
            axes.legend(fontsize=8)
        panels[0].set_ylabel("distance, pixels")


def draw_attention_maps(
    path: Path,
    images: UInt8[Tensor, "b c H W"],
    maps: Sequence[BlockMap],
    query: tuple[int, int],
) -> None:
    """Attention maps of the token at `query` (a cross) by block and image, averaged over heads."""
    shown = min(_SHOWN_IMAGES, len(images))
    title = "Where one token looks (mean over heads; bright: much)"
    says = f"Attention of the token at {query} in {', '.join(block.name for block in maps)}"
    with _figure(path, title, says, size=(1.5 * (len(maps) + 1), 1.6 * shown)) as figure:
        grid = figure.subplots(shown, len(maps) + 1, squeeze=False)
        extent = (0, images.shape[-1], images.shape[-2], 0)
        for row in range(shown):
            grid[row, 0].imshow(_as_picture(images[row]), extent=extent)
            for axes, block in zip(grid[row, 1:], maps, strict=True):
                weights = block.weights[row].mean(dim=0)
                axes.imshow(weights.numpy(), cmap="viridis", extent=extent, vmin=0)
            for axes in grid[row]:
                axes.plot(query[1], query[0], "+", color="red", markersize=9)
                axes.axis("off")
        for axes, block in zip(grid[0, 1:], maps, strict=True):
            axes.set_title(_spoken(block.name), fontsize=8)


def draw_position_biases(path: Path, scales: Mapping[float, Sequence[BlockAttention]]) -> None:
    """Biases of the first and last block at several windows, a row per head: figure 4 of Swin V2.

    `scales` maps window scales (1 is the encoder's own window) to blocks. Each row has a common
    colour scale, so that changes of the bias with the window size are visible.
    """
    first, *_ = scales.values()
    places = sorted({0, len(first) - 1})
    rows = [(place, head) for place in places for head in range(_SHOWN_HEADS)]
    rows = [(place, head) for place, head in rows if head < len(first[place].bias)]
    title = "Position bias by offset, at several windows"
    says = f"Maps of {', '.join(first[place].name for place in places)}, times {list(scales)}"
    with _figure(path, title, says, size=(2.2 * len(scales) + 1.2, 1.5 * len(rows))) as figure:
        grid = figure.subplots(len(rows), len(scales), squeeze=False)
        for line, (place, head) in zip(grid, rows, strict=True):
            maps = [blocks[place].bias[head] for blocks in scales.values()]
            values = torch.cat([bias.flatten() for bias in maps])
            low = float(values.min())
            high = max(float(values.max()), low + _LEAST_SPAN)
            for axes, bias in zip(line, maps, strict=True):
                reach = [side // 2 for side in bias.shape]
                extent = (-reach[1] - 0.5, reach[1] + 0.5, reach[0] + 0.5, -reach[0] - 0.5)
                picture = axes.imshow(bias.numpy(), vmin=low, vmax=high, extent=extent)
                axes.tick_params(labelsize=6)
                axes.locator_params(integer=True, nbins=5)
            figure.colorbar(picture, ax=list(line)).ax.tick_params(labelsize=6)
            line[0].set_ylabel(f"{first[place].name}\nhead {head + 1}", fontsize=7)
        for axes, scale, blocks in zip(grid[0], scales, scales.values(), strict=True):
            window = [(side + 1) // 2 for side in blocks[places[0]].bias.shape[1:]]
            axes.set_title(f"window {window[0]}×{window[1]} ({scale:g}×)", fontsize=8)


def draw_similarity(
    path: Path,
    similarity: Float[Tensor, "layers others"],
    rows: Sequence[str],
    columns: Sequence[str],
    names: tuple[str, str],
) -> None:
    """Linear CKA between all layers of two encoders, from 0 (dark) to 1 (bright)."""
    says = f"A {len(rows)} by {len(columns)} matrix: layers of {names[0]} by layers of {names[1]}"
    with _figure(path, "Similarity of layers (linear CKA)", says, size=(5.2, 4.4)) as figure:
        axes = figure.subplots()
        shown = axes.imshow(similarity.numpy(), vmin=0, vmax=1, cmap="magma", origin="lower")
        axes.set_xticks(range(len(columns)), [_short(name) for name in columns], rotation=90)
        axes.set_yticks(range(len(rows)), [_short(name) for name in rows])
        axes.tick_params(labelsize=7)
        axes.set(xlabel=names[1], ylabel=names[0])
        figure.colorbar(shown, ax=axes)


def draw_probes(path: Path, probes: Mapping[int, Probe], untrained: Probe) -> None:
    """Top-1 of k-NN and of a linear probe by training step, compared with a random encoder."""
    title = "What features tell of classes, as they are"
    says = f"k-NN and linear top-1 at steps {', '.join(map(str, probes))}"
    with _figure(path, title, says, size=(5.5, 3.6)) as figure:
        axes = figure.subplots()
        for number, (field, name) in enumerate(
            (("knn_top1", "nearest neighbours"), ("linear_top1", "linear layer"))
        ):
            line = _line(number)
            values = [100 * getattr(one, field) for one in probes.values()]
            axes.plot(list(probes), values, **line, label=name)
            at_random = 100 * getattr(untrained, field)
            axes.axhline(at_random, linestyle=":", color=line["color"], label=f"{name}, untrained")
        axes.set(xlabel="step", ylabel="held-out top-1, %")
        axes.grid(alpha=0.3)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)


def draw_features(
    path: Path, images: UInt8[Tensor, "b c H W"], stages: Sequence[FeaturePictures]
) -> None:
    """Each image next to its feature maps by stage, coloured by their first three components."""
    shown = min(_SHOWN_IMAGES, len(images))
    title = "Features by stage: like colours, like features"
    says = f"{shown} images beside the first three principal components of {len(stages)} stages"
    with _figure(path, title, says, size=(1.6 * (len(stages) + 1), 1.6 * shown + 0.3)) as figure:
        grid = figure.subplots(shown, len(stages) + 1, squeeze=False)
        for row in range(shown):
            grid[row, 0].imshow(_as_picture(images[row]))
            for axes, stage in zip(grid[row, 1:], stages, strict=True):
                axes.imshow(stage.colours[row].numpy())
            for axes in grid[row]:
                axes.axis("off")
        for number, (axes, stage) in enumerate(zip(grid[0, 1:], stages, strict=True), start=1):
            axes.set_title(f"stage {number} ({stage.shares.sum():.0%})", fontsize=8)


@contextmanager
def _figure(
    path: Path, title: str, description: str, *, size: tuple[float, float]
) -> Iterator["Figure"]:
    """Context manager for a figure, saved to the path on exit, with any matplotlib backend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=10)
    yield figure
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=_DPI, metadata={"Title": title, "Description": description})


def _by_block(axes: "Axes", title: str) -> None:
    """Sets up axes that show a value for each block."""
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("block")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)


def _line(number: int) -> dict[str, Any]:
    """A line's colour and marker, each of which distinguishes it from other lines."""
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "markersize": 4,
    }


def _as_picture(image: UInt8[Tensor, "c H W"]) -> Any:
    """The image for matplotlib: the first three channels, or the first one as greyscale."""
    channels = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    return channels.permute(1, 2, 0).numpy()


def _spoken(name: str) -> str:
    return name.replace("_", ", ").replace("stage", "stage ").replace("block", "block ")


def _short(name: str) -> str:
    """Shortens `stage1_block2` to `1.2`."""
    return name.replace("stage", "").replace("_block", ".")
