"""Before weights are allocated: whether a run fits into memory, and ways that would."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from omegaconf import DictConfig

from simmim.console import say
from simmim.encoder import SwinTransformer
from simmim.encoder.fused_attention import require_device
from simmim.errors import DoesNotFitError, UserError
from simmim.heads import HeadKind
from simmim.models import Classifier, SimMIM
from simmim.optim import AdamWRecipe
from simmim.resources.devices import Device, show_bytes, this_gpu, this_machine
from simmim.resources.plans import Plan, Planner, Setting
from simmim.resources.ways_out import WayOut, find_ways_out
from simmim.runs import Run, RunOptions
from simmim.starting import Start
from simmim.strategies import require_known
from simmim.trainer import resolve_precision

CreateModel: TypeAlias = Callable[[SwinTransformer], SimMIM | Classifier]


def require_memory(
    start: Start,
    run: Run,
    options: RunOptions,
    create_model: CreateModel,
    *,
    has_average: bool = False,
) -> None:
    """Plans the run on the devices that it was given; with `preflight=warn` says what it found.

    Raises:
        DoesNotFitError: it needs more memory than there is.
        UserError: a kernel was named that these devices do not run.
    """
    trainer = run.trainer
    device = trainer.strategy.root_device
    if start.planned.attention_backend == "triton":
        require_device(device)
    on_gpu = device.type == "cuda"
    # Processes of one machine share its memory, of which the first may hold a part by now.
    if not on_gpu and trainer.local_rank:
        return
    planner = create_planner(
        start,
        create_model,
        this_gpu(device.index or 0) if on_gpu else this_machine(),
        run.optimization,
        has_average=has_average,
    )
    setting = read_setting(
        options["data"],
        options["trainer"],
        planner.device,
        devices=trainer.num_devices,
        nodes=trainer.num_nodes,
    )
    if planner.fits(setting):
        return
    message = describe_shortage(
        planner.plan(setting), find_ways_out(planner, setting, start.smaller_models())
    )
    if options["preflight"] == "stop":
        raise DoesNotFitError(message + "\npreflight=warn starts it all the same")
    say(message)


def simmim_with(head: HeadKind) -> CreateModel:
    """The model with this head that pretraining trains."""

    def create_simmim(encoder: SwinTransformer) -> SimMIM:
        return SimMIM(encoder, head)

    return create_simmim


def classifier_of(classes: int, *, is_frozen: bool = False) -> CreateModel:
    """The model of so many classes that fine-tuning and transfer train; frozen: its head alone."""

    def create_classifier(encoder: SwinTransformer) -> Classifier:
        if is_frozen:
            encoder.requires_grad_(False).eval()
        return Classifier(encoder, classes)

    return create_classifier


def create_planner(
    start: Start,
    create_model: CreateModel,
    device: Device,
    optimization: AdamWRecipe,
    *,
    has_average: bool,
) -> Planner:
    """Plans settings of the model that a run starts from."""

    def build(name: str | None) -> SimMIM | Classifier:
        encoder = start.planned
        if name is not None:
            encoder = start.plan_encoder(name=name, checkpoint_blocks="none")
        with torch.device("meta"):
            return create_model(encoder)

    return Planner(build, device, optimization, has_average=has_average)


def read_setting(
    data: DictConfig, trainer: DictConfig, device: Device, *, devices: int, nodes: int
) -> Setting:
    """What the configuration says of batch, precision and strategy, for so many devices.

    Raises:
        UserError: an unknown precision or strategy, or a batch without images.
    """
    for name, value in (
        ("data.batch_size", data.batch_size),
        ("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches),
    ):
        if value < 1:
            raise UserError(f"{name} {value} is not positive; use 1 or more")
    require_known(trainer.strategy)
    sharing = trainer.strategy
    if sharing == "auto":
        sharing = "ddp" if devices * nodes > 1 else "none"
    precision = resolve_precision(trainer.precision, "cpu")
    if trainer.precision == "auto" and device.backend == "cuda":
        precision = "bf16-mixed"
    return Setting(
        batch_size=data.batch_size,
        accumulation=trainer.accumulate_grad_batches,
        precision=precision,
        sharing=sharing,
        devices=devices,
        nodes=nodes,
    )


def describe_shortage(plan: Plan, ways: Sequence[WayOut]) -> str:
    """What is needed by part, what there is, and the ways that would fit."""
    lines = [
        f"this run does not fit: each device needs {show_bytes(plan.needed)}, and "
        f"{plan.device.name} has {show_bytes(plan.available)}"
    ]
    lines += [f"  {name:<20}{show_bytes(size):>10}" for name, size in plan.parts.items()]
    lines.append(describe_setting(plan.setting))
    if not ways:
        return "\n".join([*lines, "no other setting of this model fits; use a smaller one"])
    lines.append("these would fit, the cheapest first:")
    for way in ways:
        lines += [f"  {way.overrides}", f"      {show_bytes(way.plan.needed)}; {way.price}"]
    return "\n".join(lines)


def describe_setting(setting: Setting) -> str:
    """`at data.batch_size=32 on 1 device, accumulation 1, 32-true, strategy none`."""
    return (
        f"at data.batch_size={setting.batch_size} on {setting.world_size} "
        f"device{'s' if setting.world_size > 1 else ''}, accumulation {setting.accumulation}, "
        f"{setting.precision}, strategy {setting.sharing}"
    )
