"""The analysis stage: diagnostics of an encoder as figures and tables."""

import csv
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from jaxtyping import Real
from omegaconf import DictConfig, OmegaConf
from rich import get_console
from rich.table import Table
from torch import Tensor

from simmim.analysis.diagnostics import (
    DIAGNOSTICS,
    Diagnostic,
    Finding,
    Probing,
    Subject,
    View,
    choose_images,
)
from simmim.checkpoints.load import Initialisation
from simmim.checkpoints.model_init import ModelInit
from simmim.data import ImageDataModule
from simmim.data.dataset import is_counted
from simmim.data.transforms import CenterCrop
from simmim.evaluate.knn import NeighbourVote
from simmim.models.swin import ARCHITECTURES, SwinTransformer
from simmim.models.swin.hooks import eval_mode
from simmim.training.open_data import open_data
from simmim.utils.console import say
from simmim.utils.devices import find_device
from simmim.utils.errors import UserError
from simmim.utils.files import as_json, written_beside
from simmim.utils.normalization import Normalisation, stretch
from simmim.utils.sizes import Pair, show


def analysis(
    *,
    model: DictConfig,
    checkpoint: str | None,
    other: str | None,
    what: Sequence[Diagnostic] | None,
    data: DictConfig,
    images: int,
    query: Sequence[int] | None,
    window_scales: Sequence[float],
    probe_images: int,
    knn: DictConfig,
    linear: DictConfig,
    device: str,
    seed: int,
    run_dir: str,
) -> dict[str, Any]:
    """Writes figures and a CSV file per diagnostic, and `analysis.json`; returns its content.

    Raises:
        UserError: an encoder, images or options that cannot be analysed.
    """
    started = time.monotonic()
    require_options(what, images, window_scales, probe_images)
    if Path(run_dir, "checkpoints").exists():
        raise UserError(
            f"run_dir={run_dir} holds a run; leave run_dir out, or give another one, and name the run "
            f"by checkpoint={run_dir}"
        )
    vote, regression = instantiate(knn), instantiate(linear)
    place = find_device(device)
    start = ModelInit(model, Initialisation(checkpoint))
    planned = start.planned
    starts = [start] if other is None else [start, start_other(model, other, planned)]
    place_of_query = find_query(query, planned.image_size, planned.patch_size)
    whole = open_data(data, planned, CenterCrop(planned.image_size), seed, run_dir)
    chosen = choose(what, whole, vote, probe_images)
    raw = load_images(whole, images, seed)

    names = name_both(checkpoint or str(model.get("name", "swinv2_nano")), other)
    subjects = [
        create_subject(one, name, raw, whole.normalisation, place, seed)
        for one, name in zip(starts, names, strict=True)
    ]
    view = View(
        subjects,
        raw if raw.dtype == torch.uint8 else stretch(subjects[0].images.cpu()),
        place_of_query,
        list(window_scales),
        Probing(
            whole,
            start.find_normalisation(whole.normalisation),
            probe_images,
            vote,
            regression,
            find_checkpoints(checkpoint),
            seed,
        ),
    )
    figures = find_all(chosen, view, Path(run_dir))
    content = {
        "checkpoint": checkpoint,
        "other": other,
        "images": len(raw),
        "image_size": list(planned.image_size),
        "diagnostics": figures,
        "seconds": time.monotonic() - started,
    }
    with written_beside(Path(run_dir, "analysis.json")) as beside:
        beside.write_text(as_json(content) + "\n")
    show_figures(figures)
    say(f"finished in {content['seconds']:.0f} s: {run_dir}")
    return content


def require_options(
    what: Sequence[Diagnostic] | None,
    images: int,
    window_scales: Sequence[float],
    probe_images: int,
) -> None:
    """Raises UserError for invalid options, before anything is read."""
    if what is not None and not what:
        raise UserError(f"what=[] asks for nothing; use null, or some of {', '.join(DIAGNOSTICS)}")
    if images < 1:
        raise UserError(f"images {images} is not positive; use 32")
    if probe_images < 1:
        raise UserError(f"probe_images {probe_images} is not positive; use 2000")
    if not window_scales or min(window_scales) <= 0:
        raise UserError(f"window_scales {list(window_scales)} are not positive numbers; use [1,2]")


def find_query(query: Sequence[int] | None, image_size: Pair, patch_size: int) -> Pair:
    """The pixel whose attention is drawn; by default in the token below and right of the centre."""
    middle = image_size[0] // 2 + patch_size // 2, image_size[1] // 2 + patch_size // 2
    if query is None:
        return middle
    if len(query) != 2 or not all(
        0 <= place < side for place, side in zip(query, image_size, strict=True)
    ):
        raise UserError(
            f"query {list(query)} is no place [y, x] in images of {show(image_size)} pixels; "
            f"use [{middle[0]},{middle[1]}], or null for their middle"
        )
    return query[0], query[1]


def start_other(model: DictConfig, other: str, planned: SwinTransformer) -> ModelInit:
    """The encoder to compare with, from a checkpoint or an architecture name, for the same images."""
    if other in ARCHITECTURES:
        named = OmegaConf.create(
            {
                "_target_": "simmim.create_encoder",
                "name": other,
                "image_size": list(planned.image_size),
                "window_size": list(planned.window_size),
                "in_channels": planned.in_channels,
                "pretrained_window_sizes": None,
            }
        )
        return ModelInit(named, Initialisation(None))
    same_size = OmegaConf.merge(model, {"image_size": list(planned.image_size)})
    assert isinstance(same_size, DictConfig)
    found = ModelInit(same_size, Initialisation(other))
    if found.planned.in_channels != planned.in_channels:
        raise UserError(
            f"other={other} takes {found.planned.in_channels} channels and the first encoder "
            f"{planned.in_channels}; compare encoders of the same images"
        )
    return found


def choose(
    what: Sequence[Diagnostic] | None,
    data: ImageDataModule,
    vote: NeighbourVote,
    probe_images: int,
) -> list[Diagnostic]:
    """The diagnostics to compute: the requested ones, or all that the data allow."""
    wanted = list(DIAGNOSTICS) if what is None else list(dict.fromkeys(what))
    if "probe" in wanted:
        try:
            data.require_classes()
            data.require_random_access()
            vote.require_neighbours(min(len(data.train), probe_images))
        except UserError as error:
            if what is not None:
                raise
            say(f"probe is left out: {error}")
            wanted.remove("probe")
    return wanted


def load_images(data: ImageDataModule, count: int, seed: int) -> Real[Tensor, "b c H W"]:
    """Loads `count` random held-out images (at most all of them), not normalised."""
    chosen = choose_images(len(data.val), count, seed)
    batches = [
        batch.image[is_counted(batch)] for batch in data.evaluation_dataloader(data.val, chosen)
    ]
    images = torch.cat(batches)
    if len(images) == 0:
        raise UserError(f"none of {len(chosen)} held-out images could be read; check data.root")
    return images


def create_subject(
    start: ModelInit,
    name: str,
    raw: Real[Tensor, "b c H W"],
    of_data: Normalisation,
    device: torch.device,
    seed: int,
) -> Subject:
    """Creates the encoder with its weights (random ones use the seed) and normalises the images.

    Raises:
        UserError: the encoder's features are not finite.
    """
    torch.manual_seed(seed)
    encoder = start.create_encoder().to(device)
    images = start.find_normalisation(of_data).normalise(raw.to(device))
    with eval_mode(encoder):
        is_finite = bool(encoder(images).isfinite().all())
    if not is_finite:
        raise UserError(f"features of {name} are not finite: the model had diverged; use another")
    return Subject(name, encoder, images)


def find_checkpoints(checkpoint: str | None) -> dict[int, Path]:
    """The checkpoints that a run kept, by step; empty if `checkpoint` is not a run directory."""
    if checkpoint is None:
        return {}
    kept = Path(checkpoint, "checkpoints").glob("step-*.ckpt")
    return {
        int(found[1]): path
        for path in sorted(kept)
        if (found := re.fullmatch(r"step-(\d+)\.ckpt", path.name))
    }


def name_both(first: str, other: str | None) -> list[str]:
    """Names for the encoders: architectures by name, checkpoints by the end of their path."""
    names = [
        name if name in ARCHITECTURES else "/".join(Path(name).absolute().parts[-2:])
        for name in (first, other)
        if name is not None
    ]
    if len(set(names)) < len(names):
        names[1] += " (other)"
    return names


def find_all(chosen: Sequence[Diagnostic], view: View, folder: Path) -> dict[str, Any]:
    """Computes each diagnostic and writes its files; returns the results by diagnostic."""
    figures: dict[str, Any] = {}
    for name in chosen:
        finding = DIAGNOSTICS[name](view)
        say(f"{name}: {finding.headline}")
        figures[name] = {
            "headline": finding.headline,
            "files": write_finding(finding, name, folder),
            "figures": list(finding.rows),
        }
    return figures


def write_finding(finding: Finding, name: str, folder: Path) -> list[str]:
    """Writes the rows as CSV and draws the figures; returns the file names."""
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(finding.rows[0]))
        writer.writeheader()
        writer.writerows(finding.rows)
    for picture, draw in finding.pictures.items():
        draw(folder / f"{picture}.png")
    return [f"{name}.csv", *(f"{picture}.png" for picture in finding.pictures)]


def show_figures(figures: dict[str, Any]) -> None:
    """Prints a table with the headline and the files of each diagnostic."""
    table = Table(min_width=60)
    table.add_column("diagnostic", no_wrap=True)
    table.add_column("found")
    table.add_column("files")
    for name, found in figures.items():
        table.add_row(name, found["headline"], ", ".join(found["files"]))
    get_console().print(table)
