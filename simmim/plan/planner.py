"""Plans: a setting's memory and FLOPs on a device, whether it fits, and the largest batch that does."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from simmim.models.classifier import HeadedEncoder
from simmim.models.simmim import SimMIM
from simmim.plan.devices import Device
from simmim.plan.model_memory import Sharing, StaticMemory, static_memory
from simmim.plan.step_memory import StepNeeds, StepTracer
from simmim.plan.tracer import Arithmetic
from simmim.training.optim import AdamWRecipe
from simmim.training.optim.param_groups import parameter_groups

_AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}

# Fragmentation of the C heap: freed memory in pieces too small for the next tensors. On the CPU, it
# was 1.8 to 2.2 times the memory of the largest block for SwinV2-T and B, with and without
# recomputation (scripts/plan_accuracy.py). MALLOC_MMAP_THRESHOLD_=65536 avoids it, but takes 1.8
# times as long.
_HEAP_PIECES = 2

# Upper bound of the search for the largest batch on one device.
_MOST_IMAGES = 2**16


@dataclass(frozen=True)
class Setting:
    """The options that can be changed to make a run fit.

    Attributes:
        model: an architecture's name; None: the requested one.
        checkpoint_blocks: number of recomputed blocks, by stage; None: as requested.
        batch_size: images per device and forward pass.
        accumulation: forward passes per step.
        devices: devices per node.
    """

    batch_size: int
    accumulation: int
    precision: str
    sharing: Sharing
    devices: int
    nodes: int
    model: str | None = None
    checkpoint_blocks: tuple[int, ...] | None = None

    @property
    def world_size(self) -> int:
        """The number of devices over all nodes."""
        return self.devices * self.nodes

    @property
    def effective_batch(self) -> int:
        """Images per step."""
        return self.batch_size * self.accumulation * self.world_size


class Plan(NamedTuple):
    """The memory that a setting needs on each device, and its FLOPs per image.

    Attributes:
        step: the needs of one forward and backward pass.
    """

    setting: Setting
    device: Device
    parameters: int
    holdings: StaticMemory
    step: StepNeeds

    @property
    def parts(self) -> dict[str, int]:
        """The peak memory by part, over forward, backward and the optimiser step."""
        held = self.holdings
        parts = {
            "weights": held.weights,
            "gradients": held.gradients,
            "optimiser states": held.optimizer_states,
            "moving average": held.average,
            "strategy's buffers": held.buffers,
            "activations": max(self.step.activations, held.optimizer_step),
        }
        if self.device.backend == "cpu":
            parts |= {
                "heap": _HEAP_PIECES * self.step.largest_segment,
                "checkpoint": held.checkpoint,
                "process": self.device.process,
            }
        return {name: size for name, size in parts.items() if size}

    @property
    def needed(self) -> int:
        """Peak bytes on one device."""
        return sum(self.parts.values())

    @property
    def available(self) -> int:
        """Bytes that one process may use; CPU processes share their machine's memory."""
        processes = self.setting.devices if self.device.backend == "cpu" else 1
        return self.device.memory // processes

    @property
    def fits(self) -> bool:
        """Whether the needed memory is available."""
        return self.needed <= self.available

    @property
    def flops(self) -> float:
        """Model FLOPs of one image, forward and backward, not counting recomputation."""
        return self.step.forward_flops + self.step.backward_flops


@dataclass
class Planner:
    """Plans settings of one model on one device and caches what it traced.

    Attributes:
        build: creates the model (or the one of the given name) on the meta device.
        has_average: a moving average of the weights is kept.
    """

    build: Callable[[str | None], SimMIM | HeadedEncoder]
    device: Device
    optimization: AdamWRecipe
    has_average: bool = False
    _models: dict[str | None, SimMIM | HeadedEncoder] = field(default_factory=dict)
    _tracers: dict[object, StepTracer] = field(default_factory=dict)
    _steps: dict[object, dict[int, StepNeeds]] = field(default_factory=dict)
    _holdings: dict[object, StaticMemory] = field(default_factory=dict)

    def plan(self, setting: Setting) -> Plan:
        """Plans this setting."""
        model = self.model(setting)
        return Plan(
            setting,
            self.device,
            sum(parameter.numel() for parameter in model.parameters()),
            self._hold(setting),
            self._step(setting),
        )

    def fits(self, setting: Setting) -> bool:
        """Whether a setting fits; traces it only if a lower bound of its memory fits."""
        least = Plan(setting, self.device, 0, self._hold(setting), self._least_step(setting))
        return least.fits and self.plan(setting).fits

    def largest_batch(self, setting: Setting) -> int:
        """The largest batch per device that fits with all else unchanged; 0 if no image fits."""

        def room(batch_size: int) -> int:
            plan = self.plan(replace(setting, batch_size=batch_size))
            return plan.available - plan.needed

        if not self.fits(replace(setting, batch_size=1)):
            return 0
        # Memory is linear in the batch, or piecewise linear with increasing slopes.
        fits, beyond = 1, 2
        while room(beyond) >= 0:
            if beyond >= _MOST_IMAGES:
                return _MOST_IMAGES
            an_image = (room(fits) - room(beyond)) // (beyond - fits)
            more = room(beyond) // an_image if an_image > 0 else beyond
            fits, beyond = beyond, min(beyond + more + 1, _MOST_IMAGES)
        while beyond - fits > 1:
            share = room(fits) / (room(fits) - room(beyond))
            middle = min(max(fits + int(share * (beyond - fits)), fits + 1), beyond - 1)
            fits, beyond = (middle, beyond) if room(middle) >= 0 else (fits, middle)
        return fits

    def model(self, setting: Setting) -> SimMIM | HeadedEncoder:
        """The setting's model, on the meta device."""
        if setting.model not in self._models:
            self._models[setting.model] = self.build(setting.model)
        return self._models[setting.model]

    def _hold(self, setting: Setting) -> StaticMemory:
        key = setting.model, setting.sharing, setting.world_size
        if key not in self._holdings:
            self._holdings[key] = self._find_holdings(setting)
        return self._holdings[key]

    def _find_holdings(self, setting: Setting) -> StaticMemory:
        model = self.model(setting)
        groups = parameter_groups(
            model,
            lr=1.0,
            weight_decay=self.optimization.weight_decay,
            depths=model.encoder.depths,
            layer_decay=self.optimization.layer_decay,
        )
        return static_memory(
            model,
            setting.sharing,
            setting.world_size,
            largest_group=max(sum(p.numel() for p in group["params"]) for group in groups),
            is_fused=self.device.backend == "cuda",
            has_average=self.has_average,
        )

    def _step(self, setting: Setting) -> StepNeeds:
        alike = _alike(setting)
        if alike not in self._tracers:
            arithmetic = Arithmetic(self.device.backend, autocast=_AUTOCAST[setting.precision])
            keeps_gradients = setting.accumulation > 1 or setting.sharing != "none"
            self._tracers[alike] = StepTracer(self.model(setting), arithmetic, keeps_gradients)
        traced = self._steps.setdefault((alike, setting.checkpoint_blocks), {})
        if setting.batch_size not in traced:
            traced[setting.batch_size] = self._tracers[alike].trace(
                setting.batch_size, setting.checkpoint_blocks
            )
        return traced[setting.batch_size]

    def _least_step(self, setting: Setting) -> StepNeeds:
        """A lower bound of a step's needs, from traces of larger batches.

        At each moment, memory is a constant plus a part proportional to the batch, so that half of
        the images need at least half of the memory. Gradients that do not exist yet are subtracted
        from `activations`; they do not depend on the batch, and are added back before scaling.
        Batch sizes are rounded to multiples of two because planned attention runs in two chunks.
        """
        gradients = self._hold(setting).gradients
        traced = self._steps.get((_alike(setting), setting.checkpoint_blocks), {})
        activations = largest_segment = 0
        for batch_size, step in traced.items():
            images = max(1, setting.batch_size // 2 * 2)
            share = min(1, images / (-(-batch_size // 2) * 2))
            activations = max(activations, int(share * (step.activations + gradients)) - gradients)
            largest_segment = max(largest_segment, int(share * step.largest_segment))
        return StepNeeds(activations, largest_segment, 0.0, 0.0, 0.0)


def _alike(setting: Setting) -> tuple[object, ...]:
    """A key of the tracer: settings with equal keys share a tracer."""
    return setting.model, setting.precision, setting.accumulation > 1 or setting.sharing != "none"


def training_days(plan: Plan, *, images: float, peak_flops: float, mfu: float) -> float:
    """Days to train on this total number of images at a share `mfu` of all devices' peak FLOPs."""
    rate = mfu * peak_flops * plan.setting.world_size
    return images * plan.flops / rate / 86400
