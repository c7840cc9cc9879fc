"""The inputs of a plan from a run's options: its model without weights, and its setting."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from simmim.checkpoints.model_init import ModelInit
from simmim.models.classifier import Classifier, HeadedEncoder
from simmim.models.heads import HeadKind
from simmim.models.simmim import SimMIM
from simmim.models.swin import SwinTransformer
from simmim.plan.devices import Device
from simmim.plan.planner import Planner, Setting
from simmim.training.optim import AdamWRecipe
from simmim.training.options import require_known, resolve_precision
from simmim.utils.errors import UserError

CreateModel: TypeAlias = Callable[[SwinTransformer], SimMIM | HeadedEncoder]


def simmim_with(head: HeadKind) -> CreateModel:
    """A function that creates the pretraining model with this head."""

    def create_simmim(encoder: SwinTransformer) -> SimMIM:
        return SimMIM(encoder, head)

    return create_simmim


def headed_by(
    create: Callable[[SwinTransformer, int], HeadedEncoder],
    outputs: int,
    *,
    is_frozen: bool = False,
) -> CreateModel:
    """A function that creates the model of fine-tuning and transfer, with this many outputs.

    `create` adds a head to an encoder; with `is_frozen`, only the head is trained.
    """

    def create_headed(encoder: SwinTransformer) -> HeadedEncoder:
        if is_frozen:
            encoder.requires_grad_(False).eval()
        return create(encoder, outputs)

    return create_headed


def classifier_of(classes: int, *, is_frozen: bool = False) -> CreateModel:
    """A function that creates the classifier of `classes` classes, as `headed_by` does."""
    return headed_by(Classifier, classes, is_frozen=is_frozen)


def create_planner(
    start: ModelInit,
    create_model: CreateModel,
    device: Device,
    optimization: AdamWRecipe,
    *,
    has_average: bool,
) -> Planner:
    """Creates a planner for the model that a run starts from."""

    def build(name: str | None) -> SimMIM | HeadedEncoder:
        encoder = start.planned
        if name is not None:
            encoder = start.plan_encoder(name=name, checkpoint_blocks="none")
        with torch.device("meta"):
            return create_model(encoder)

    return Planner(build, device, optimization, has_average=has_average)


def create_setting(
    device: Device,
    *,
    batch_size: int,
    accumulation: int,
    precision: str | int,
    strategy: str,
    devices: int,
    nodes: int,
) -> Setting:
    """Resolves the options of data and trainer to a setting on this number of devices.

    Raises:
        UserError: an unknown precision or strategy, or a batch without images.
    """
    for name, value in (
        ("data.batch_size", batch_size),
        ("trainer.accumulate_grad_batches", accumulation),
    ):
        if value < 1:
            raise UserError(f"{name} {value} is not positive; use 1 or more")
    require_known(strategy)
    sharing: Any = strategy
    if sharing == "auto":
        sharing = "ddp" if devices * nodes > 1 else "none"
    resolved = resolve_precision(precision, "cpu")
    if precision == "auto" and device.has_bf16:
        resolved = "bf16-mixed"
    return Setting(
        batch_size=batch_size,
        accumulation=accumulation,
        precision=resolved,
        sharing=sharing,
        devices=devices,
        nodes=nodes,
    )


def describe_setting(setting: Setting) -> str:
    """For example `at data.batch_size=32 on 1 device, accumulation 1, 32-true, strategy none`."""
    return (
        f"at data.batch_size={setting.batch_size} on {setting.world_size} "
        f"device{'s' if setting.world_size > 1 else ''}, accumulation {setting.accumulation}, "
        f"{setting.precision}, strategy {setting.sharing}"
    )
