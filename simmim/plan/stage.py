"""The planning stage: the memory and time that a run would need on this machine or another device."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich import get_console
from rich.table import Table
from typing_extensions import Unpack

from simmim.checkpoints.model_init import ModelInit
from simmim.models.classifier import Mode
from simmim.models.heads import HeadKind
from simmim.models.losses import LossRegion
from simmim.plan.devices import Device, find_device, parse_bytes, show_bytes
from simmim.plan.inputs import (
    classifier_of,
    create_planner,
    create_setting,
    describe_setting,
    simmim_with,
)
from simmim.plan.planner import Plan, Planner, training_days
from simmim.plan.suggestions import Suggestion, find_suggestions
from simmim.utils.console import say
from simmim.utils.errors import UserError
from simmim.utils.files import as_json

# Bytes of a run's process on a CPU before its model is created; a plan imports less than a run.
# A plan's process used 933 MB with all of a run's imports; these imports alone use 878 MB.
_RUN_PROCESS = 930_000_000


@dataclass(frozen=True)
class PlanOptions:
    """The options of a plan besides those of the run.

    Attributes:
        device: a name, or `auto` for this machine's device.
        device_memory: memory of one device, e.g. `80GB` (None: the device's own).
        peak_flops: floating-point operations per second of one device (None: the named device's).
        mfu: model FLOPs utilisation, the share of the peak that training reaches.
        images: images per epoch.
        classes: classes of a classifier.

    Raises:
        UserError: a value out of its range.
    """

    device: str = "auto"
    device_memory: str | int | None = None
    peak_flops: float | None = None
    mfu: float = 0.4
    images: int = 1_281_167
    classes: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.mfu <= 1:
            raise UserError(f"plan.mfu {self.mfu} is not in (0, 1]; use 0.4")
        if self.peak_flops is not None and self.peak_flops <= 0:
            raise UserError(f"plan.peak_flops {self.peak_flops} is not positive; use 312e12")
        for name, value in (("images", self.images), ("classes", self.classes)):
            if value < 1:
                raise UserError(f"plan.{name} {value} is not positive; use 1000")

    def find_device(self) -> Device:
        """The device to plan for, with `device_memory` if given."""
        device = find_device(self.device)
        if device.backend == "cpu":
            device = device._replace(process=max(device.process, _RUN_PROCESS))
        if self.device_memory is None:
            return device
        return device._replace(memory=parse_bytes(self.device_memory))


class DataOptions(TypedDict):
    """What a plan reads of `data` without instantiating it."""

    batch_size: int


class TrainerOptions(TypedDict):
    """What a plan reads of `trainer` without instantiating it."""

    devices: int | str | Sequence[int]
    num_nodes: int | str
    strategy: str
    precision: str | int
    accumulate_grad_batches: int
    max_epochs: int | None
    max_steps: int


class AverageOptions(TypedDict):
    """What a plan reads of `ema` without instantiating it."""

    decay: float | None


class Unread(TypedDict):
    """A config node that a plan does not depend on."""


class StageOptions(TypedDict, total=False):
    """Options that only some stages have or that no plan depends on.

    They are accepted so that a run's command line also works for its plan.
    """

    ema: AverageOptions
    target_window: int | None
    loss_region: LossRegion
    augmentation: Unread
    mixing: Unread
    task: Unread
    save: Unread
    guard: Unread
    resume: str
    resume_force: bool
    stop_signals: list[str]
    objective: str
    logger: Unread
    report: Unread
    reconstructions: Unread
    knn: Unread
    seed: int
    preflight: str
    compile: str


def plan(
    *,
    plan: DictConfig,
    model: DictConfig,
    init: DictConfig,
    data: DataOptions,
    optim: DictConfig,
    trainer: TrainerOptions,
    run_dir: str,
    mask: DictConfig | None = None,
    head: HeadKind = "linear",
    mode: Mode = "full",
    **options: Unpack[StageOptions],
) -> dict[str, Any]:
    """Plans memory by part, whether it fits, the largest batch and the days; returns what it writes.

    No weights are allocated and no data is read.
    """
    wanted: PlanOptions = instantiate(plan)
    device = wanted.find_device()
    start = ModelInit(model, instantiate(init))
    planner = create_planner(
        start,
        simmim_with(head)
        if mask is not None
        else classifier_of(wanted.classes, is_frozen=mode == "linear"),
        device,
        instantiate(optim),
        has_average="ema" in options and options["ema"]["decay"] is not None,
    )
    nodes = trainer["num_nodes"]
    setting = create_setting(
        device,
        batch_size=data["batch_size"],
        accumulation=trainer["accumulate_grad_batches"],
        precision=trainer["precision"],
        strategy=trainer["strategy"],
        devices=count_devices(trainer["devices"], is_here=wanted.device == "auto"),
        nodes=1 if nodes == "auto" else int(nodes),
    )
    planned = planner.plan(setting)
    figures = describe(planned, planner, trainer, wanted)
    show(planned, figures)
    ways: list[Suggestion] = []
    if not planned.fits:
        ways = find_suggestions(planner, setting, start.smaller_models())
        say("it does not fit; these would, the cheapest first:")
        for way in ways:
            say(f"  {way.overrides}")
            say(f"      {show_bytes(way.plan.needed)}; {way.price}")
    figures["ways_that_fit"] = [
        {"overrides": way.overrides, "price": way.price, "needed_bytes": way.plan.needed}
        for way in ways
    ]
    path = Path(run_dir, "plan.json")
    path.write_text(as_json(figures) + "\n")
    say(f"written to {path}")
    return figures


def count_devices(devices: int | str | Sequence[int], *, is_here: bool) -> int:
    """The number of devices per node; `auto` is this machine's GPUs if `is_here`, else one."""
    if str(devices) in ("auto", "-1"):
        return max(1, torch.cuda.device_count()) if is_here else 1
    if isinstance(devices, str) and not devices.isdigit():
        raise UserError(f"trainer.devices={devices} is neither a number nor auto; use auto")
    count = int(devices) if isinstance(devices, (int, str)) else len(devices)
    if count < 1:
        raise UserError(f"trainer.devices={devices} names no device; use 1 or more, or auto")
    return count


def describe(
    planned: Plan, planner: Planner, trainer: TrainerOptions, wanted: PlanOptions
) -> dict[str, Any]:
    """The plan's numbers: bytes per device, FLOPs per image and days."""
    setting, step = planned.setting, planned.step
    images = run_images(trainer, wanted.images, setting.effective_batch)
    peak = wanted.peak_flops or planned.device.peak_flops.get(setting.precision)
    days = None
    if peak is not None:
        days = training_days(planned, images=images, peak_flops=peak, mfu=wanted.mfu)
    return {
        "device": planned.device.name,
        "setting": asdict(setting) | {"effective_batch": setting.effective_batch},
        "parameters": planned.parameters,
        "bytes": planned.parts,
        "needed_bytes": planned.needed,
        "available_bytes": planned.available,
        "fits": planned.fits,
        "largest_batch": planner.largest_batch(setting),
        "flops_per_image": {
            "forward": step.forward_flops,
            "backward": step.backward_flops,
            "recomputed": step.recomputed_flops,
        },
        "images": images,
        "mfu": wanted.mfu,
        "peak_flops": peak,
        "days": days,
    }


def run_images(trainer: TrainerOptions, images: int, effective_batch: int) -> int:
    """The total number of images of a run, limited by its epochs or steps, whichever ends first."""
    epochs, steps = trainer["max_epochs"], trainer["max_steps"]
    ends = [epochs * images] if epochs and epochs > 0 else []
    if steps >= 0:
        ends.append(steps * effective_batch)
    if not ends:
        raise UserError(
            "the run has no end; set trainer.max_epochs=100 or trainer.max_steps=100000"
        )
    return min(ends)


def show(planned: Plan, figures: dict[str, Any]) -> None:
    """Prints the plan's numbers as a table on the console."""
    flops = figures["flops_per_image"]
    table = Table(
        title=describe_setting(planned.setting),
        title_justify="left",
        title_style="",
        min_width=60,
        show_header=False,
    )
    table.add_column()
    table.add_column(justify="right")
    table.add_row("parameters", f"{planned.parameters / 1e6:.1f}M")
    table.add_section()
    for name, size in planned.parts.items():
        table.add_row(name, show_bytes(size))
    table.add_row("needed on each device", show_bytes(planned.needed))
    table.add_row(f"{planned.device.name} has", show_bytes(planned.available))
    table.add_row("fits", "yes" if planned.fits else "no")
    table.add_row("largest data.batch_size", str(figures["largest_batch"]))
    table.add_section()
    for name in ("forward", "backward", "recomputed"):
        table.add_row(f"{name}, an image", f"{flops[name] / 1e9:.1f} GFLOP")
    if figures["days"] is not None:
        speed = f"{figures['mfu']:.0%} of {figures['peak_flops']:.3g} FLOP/s"
        what = f"{figures['images']:.3g} images at {speed}"
        table.add_row(what, f"{figures['days']:.2f} days")
    get_console().print(table)
