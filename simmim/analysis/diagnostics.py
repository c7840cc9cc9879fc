"""The diagnostics of an encoder: each function maps a `View` to a `Finding`."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from simmim.analysis import plots
from simmim.analysis.amplitude import activation_amplitudes, amplitude_ratio
from simmim.analysis.attention import attention_distances, attention_maps
from simmim.analysis.cka import layer_features, layer_similarity
from simmim.analysis.pca import feature_pictures
from simmim.analysis.position_bias import position_biases
from simmim.checkpoints.load import load_encoder_weights
from simmim.checkpoints.read import read_weights
from simmim.data import ImageDataModule
from simmim.data.dataset import ImageSource
from simmim.evaluate.features import extract_features
from simmim.evaluate.knn import NeighbourVote
from simmim.evaluate.linear_probe import RegressionRecipe
from simmim.evaluate.probe import LabelledFeatures, Probe, probe
from simmim.models.swin import SwinTransformer
from simmim.utils.console import say
from simmim.utils.normalization import Normalisation
from simmim.utils.rng import derive_seed
from simmim.utils.sizes import Pair

Diagnostic = Literal["amplitude", "attention", "position_bias", "cka", "probe", "features"]


class Subject(NamedTuple):
    """An encoder to analyse, its name, and the images normalised for it."""

    name: str
    encoder: SwinTransformer
    images: Float[Tensor, "b c H W"]


class Probing(NamedTuple):
    """The settings for probing features: the data, the maximum number of images and the probes.

    `checkpoints` are those of a run, by step; empty if the encoder is not from a run.
    """

    data: ImageDataModule
    normalisation: Normalisation
    most_images: int
    vote: NeighbourVote
    regression: RegressionRecipe
    checkpoints: Mapping[int, Path]
    seed: int


class View(NamedTuple):
    """The input of the diagnostics.

    Attributes:
        subjects: the encoder, and the one to compare with, if any.
        pictures: the images for display.
        query: the pixel `(y, x)` whose attention is drawn.
        scales: the window scales at which position biases are evaluated.
        probing: the settings of the probes.
    """

    subjects: Sequence[Subject]
    pictures: UInt8[Tensor, "b c H W"]
    query: Pair
    scales: Sequence[float]
    probing: Probing


class Finding(NamedTuple):
    """The result of a diagnostic: a headline, table rows, and drawing functions by figure name."""

    headline: str
    rows: Sequence[Mapping[str, Any]]
    pictures: Mapping[str, Callable[[Path], None]]


def find_amplitude(view: View) -> Finding:
    """Activation amplitudes by depth."""
    found = {
        subject.name: activation_amplitudes(subject.encoder, subject.images)
        for subject in view.subjects
    }
    ratios = (f"{amplitude_ratio(blocks):.3g} ({name})" for name, blocks in found.items())
    return Finding(
        f"largest block output over smallest: {', '.join(ratios)}",
        [{"model": name, **block._asdict()} for name, blocks in found.items() for block in blocks],
        {"amplitude": lambda path: plots.draw_amplitudes(path, found)},
    )


def find_attention(view: View) -> Finding:
    """Mean attention distances, and the attention maps of one token."""
    found = {
        subject.name: attention_distances(subject.encoder, subject.images)
        for subject in view.subjects
    }
    subject = view.subjects[0]
    maps = attention_maps(subject.encoder, subject.images, view.query)
    shown = [block for block in maps if block.name.endswith("_block1")]
    shown += [block for block in maps[-1:] if block not in shown]
    of_first = found[subject.name]
    ends = (
        f"{block.heads.mean():.1f} px in {block.name} (equal attention {block.uniform:.1f})"
        for block in (of_first[0], of_first[-1])
    )
    return Finding(
        f"mean distance {', '.join(ends)}",
        [
            {"model": name, "block": block.name, "head": head, "distance": distance}
            | {"uniform": block.uniform}
            for name, blocks in found.items()
            for block in blocks
            for head, distance in enumerate(block.heads.tolist(), start=1)
        ],
        {
            "attention_distance": lambda path: plots.draw_distances(path, found),
            "attention_maps": lambda path: plots.draw_attention_maps(
                path, view.pictures, shown, view.query
            ),
        },
    )


def find_position_bias(view: View) -> Finding:
    """Position biases at the encoder's own windows and at larger ones."""
    encoder = view.subjects[0].encoder
    found = {scale: position_biases(encoder, scale) for scale in view.scales}
    spans = (f"{_span(blocks[0].bias):.3g} ({scale:g}×)" for scale, blocks in found.items())
    rows = [
        {
            "scale": scale,
            "stage": block.stage + 1,
            "block": block.block + 1,
            "head": head,
            "window_height": (bias.shape[0] + 1) // 2,
            "window_width": (bias.shape[1] + 1) // 2,
            "least": float(bias.min()),
            "most": float(bias.max()),
            "at_zero": float(bias[bias.shape[0] // 2, bias.shape[1] // 2]),
            "logit_scale": None if block.scale is None else float(block.scale[head - 1]),
        }
        for scale, blocks in found.items()
        for block in blocks
        for head, bias in enumerate(block.bias, start=1)
    ]
    return Finding(
        f"most less least of the first block's bias, in logits: {', '.join(spans)}",
        rows,
        {"position_bias": lambda path: plots.draw_position_biases(path, found)},
    )


def find_similarity(view: View) -> Finding:
    """Linear CKA between the layers of the encoder and its own or those of the other encoder."""
    first, second = view.subjects[0], view.subjects[-1]
    sizes = [
        (subject.images.shape[-2] // stride, subject.images.shape[-1] // stride)
        for subject in (first, second)
        for stride in [subject.encoder.stride]
    ]
    grid = min(sizes)
    features = layer_features(first.encoder, first.images, grid)
    others = features if second is first else layer_features(second.encoder, second.images, grid)
    similarity = layer_similarity(features, others)
    rows, columns = list(features), list(others)
    return Finding(
        f"first block and last layer {similarity[0, -1]:.2f}; last layer of both "
        f"{similarity[-1, -1]:.2f}"
        if second is not first
        else f"first block and last layer {similarity[0, -1]:.2f}",
        [
            {"layer": row, "other": column, "cka": float(similarity[place, other])}
            for place, row in enumerate(rows)
            for other, column in enumerate(columns)
        ],
        {
            "cka": lambda path: plots.draw_similarity(
                path, similarity, rows, columns, (first.name, second.name)
            )
        },
    )


def find_probes(view: View) -> Finding:
    """Probe accuracy of the features of every checkpoint, compared with an untrained encoder."""
    probing, subject = view.probing, view.subjects[0]
    torch.manual_seed(probing.seed)
    untrained = SwinTransformer(**subject.encoder.arguments).to(subject.images.device)
    at_random = probe_encoder(untrained, probing)
    found: dict[int, Probe] = {}
    encoder = copy.deepcopy(subject.encoder)
    for step, path in probing.checkpoints.items():
        say(f"probe: step {step}")
        weights = read_weights(path)
        load_encoder_weights(
            encoder, weights.encoder, source=str(path), window_sizes=weights.window_sizes
        )
        found[step] = probe_encoder(encoder, probing)
    newest = [*found.values()][-1] if found else probe_encoder(subject.encoder, probing)
    rows = [("untrained", at_random), *((str(step), judged) for step, judged in found.items())]
    if not found:
        rows.append(("as given", newest))
    return Finding(
        f"top-1 by neighbours {newest.knn_top1:.1%} (untrained {at_random.knn_top1:.1%}), "
        f"by a linear layer {newest.linear_top1:.1%} ({at_random.linear_top1:.1%})",
        [{"step": step, **figures._asdict()} for step, figures in rows],
        {"probe": lambda path: plots.draw_probes(path, found, at_random)} if found else {},
    )


def find_features(view: View) -> Finding:
    """Principal components of the stages' feature maps."""
    subject = view.subjects[0]
    stages = feature_pictures(subject.encoder, subject.images)
    shares = (f"{stage.shares.sum():.0%}" for stage in stages)
    return Finding(
        f"variance in three components, by stage: {', '.join(shares)}",
        [
            {"stage": number, "component": component, "share": share}
            for number, stage in enumerate(stages, start=1)
            for component, share in enumerate(stage.shares.tolist(), start=1)
        ],
        {"features": lambda path: plots.draw_features(path, view.pictures, stages)},
    )


DIAGNOSTICS: Mapping[Diagnostic, Callable[[View], Finding]] = {
    "amplitude": find_amplitude,
    "attention": find_attention,
    "position_bias": find_position_bias,
    "cka": find_similarity,
    "probe": find_probes,
    "features": find_features,
}


def probe_encoder(encoder: SwinTransformer, probing: Probing) -> Probe:
    """Probes an encoder's features: fitted on training images, evaluated on held-out images."""
    data = probing.data

    def see(source: ImageSource) -> LabelledFeatures:
        chosen = choose_images(len(source), probing.most_images, probing.seed)
        batches = data.evaluation_dataloader(source, chosen)
        device = next(encoder.parameters()).device
        features = extract_features(encoder.eval(), batches, probing.normalisation, device)
        counted = features.counted()
        return LabelledFeatures(counted.values, counted.labels)

    return probe(
        see(data.require_random_access()),
        see(data.val),
        num_classes=len(data.require_classes()),
        vote=probing.vote,
        regression=probing.regression,
        seed=probing.seed,
    )


def choose_images(count: int, most: int, seed: int) -> list[int]:
    """Indices of at most `most` random images; random because folders list images by class."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "analysis") % 2**63)
    return sorted(torch.randperm(count, generator=generator)[:most].tolist())


def _span(values: Tensor) -> float:
    return float(values.max() - values.min())
