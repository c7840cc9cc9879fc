"""A plan: what a setting takes on a device, whether it fits, and the largest batch that does."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from simmim.models.classifier import Classifier
from simmim.models.simmim import SimMIM
from simmim.plan.devices import Device
from simmim.plan.model_memory import Sharing, StaticMemory, static_memory
from simmim.plan.step_memory import StepNeeds, StepTracer
from simmim.plan.tracer import Arithmetic
from simmim.training.optim import AdamWRecipe
from simmim.training.optim.param_groups import parameter_groups

_AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}

# What the C library keeps of freed memory, in pieces too small for the next tensors: measured on the
# CPU for SwinV2-T and B with and without recomputation as 1.8 to 2.2 times what the largest block holds
# (scripts/plan_accuracy.py). MALLOC_MMAP_THRESHOLD_=65536 gives it back, at 1.8 times the time.
_HEAP_PIECES = 2

# No one trains with more images on one device.
_MOST_IMAGES = 2**16


@dataclass(frozen=True)
class Setting:
    """What can be changed to make a run fit.

    Attributes:
        model: an architecture's name; None: the one that was asked for.
        checkpoint_blocks: blocks that are recomputed, by stage; None: as was asked for.
        batch_size: images per device and forward pass.
        accumulation: forward passes a step.
        devices: of each node.
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
        """Devices of all nodes."""
        return self.devices * self.nodes

    @property
    def effective_batch(self) -> int:
        """Images a step."""
        return self.batch_size * self.accumulation * self.world_size


class Plan(NamedTuple):
    """What a setting takes on each device, in bytes, and per image, in floating-point operations.

    Attributes:
        step: what one forward and backward pass takes.
    """

    setting: Setting
    device: Device
    parameters: int
    holdings: StaticMemory
    step: StepNeeds

    @property
    def parts(self) -> dict[str, int]:
        """What the peak is made of, by name: the worst moment of forward, backward and step."""
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
        """Bytes on one device at the worst moment."""
        return sum(self.parts.values())

    @property
    def available(self) -> int:
        """Bytes that one process may take; those on the CPU share their machine's."""
        processes = self.setting.devices if self.device.backend == "cpu" else 1
        return self.device.memory // processes

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return self.needed <= self.available

    @property
    def flops(self) -> float:
        """Of one image forward and backward, as its model has it: recomputation does not count."""
        return self.step.forward_flops + self.step.backward_flops


@dataclass
class Planner:
    """Plans settings of one model on one device; what was traced once is not traced again.

    Attributes:
        build: the model, or another of that name, on the meta device.
        has_average: a moving average of the weights is kept.
    """

    build: Callable[[str | None], SimMIM | Classifier]
    device: Device
    optimization: AdamWRecipe
    has_average: bool = False
    _models: dict[str | None, SimMIM | Classifier] = field(default_factory=dict)
    _tracers: dict[object, StepTracer] = field(default_factory=dict)
    _steps: dict[object, dict[int, StepNeeds]] = field(default_factory=dict)
    _holdings: dict[object, StaticMemory] = field(default_factory=dict)

    def plan(self, setting: Setting) -> Plan:
        """What this setting takes."""
        model = self.model(setting)
        return Plan(
            setting,
            self.device,
            sum(parameter.numel() for parameter in model.parameters()),
            self._hold(setting),
            self._step(setting),
        )

    def fits(self, setting: Setting) -> bool:
        """Whether a setting fits; traced only where less than a step does not tell that it does not."""
        least = Plan(setting, self.device, 0, self._hold(setting), self._least_step(setting))
        return least.fits and self.plan(setting).fits

    def largest_batch(self, setting: Setting) -> int:
        """The most images on one device that fit, all else as it is; 0 where not one does."""

        def room(batch_size: int) -> int:
            plan = self.plan(replace(setting, batch_size=batch_size))
            return plan.available - plan.needed

        if not self.fits(replace(setting, batch_size=1)):
            return 0
        # Memory grows with the batch along a line, or along several, each steeper than the last.
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

    def model(self, setting: Setting) -> SimMIM | Classifier:
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
        """What a step takes at least, by those of larger batches that were traced.

        At each moment of a step some bytes are there whatever the batch, and the others grow with it:
        half of the images take at least half of all. What `activations` lack where gradients are yet
        to come is there whatever the batch. Attention in two chunks counts images in twos.
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
    """Settings for which this is the same are traced by the same tracer."""
    return setting.model, setting.precision, setting.accumulation > 1 or setting.sharing != "none"


def training_days(plan: Plan, *, images: float, peak_flops: float, mfu: float) -> float:
    """Days for so many images in all, at a share `mfu` of the peak of all devices."""
    rate = mfu * peak_flops * plan.setting.world_size
    return images * plan.flops / rate / 86400
