"""Learning rate schedules: functions from the step to a factor of the peak rate."""

import bisect
import math
from collections.abc import Callable, Sequence

Schedule = Callable[[int], float]


def cosine(total_steps: int, warmup_steps: int, final_factor: float) -> Schedule:
    """Half a cosine from 1 at the end of the warm-up to `final_factor` at the last step."""

    def factor(step: int) -> float:
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        wave = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
        return final_factor + (1 - final_factor) * wave

    return factor


def multistep(milestones: Sequence[int], gamma: float) -> Schedule:
    """Multiplies the rate by `gamma` at each of the (ascending) milestone steps."""
    return lambda step: gamma ** bisect.bisect_right(milestones, step)


def with_warmup(schedule: Schedule, warmup_steps: int, start_factor: float) -> Schedule:
    """Linear from `start_factor` to 1 over the first `warmup_steps`, then the schedule."""

    def factor(step: int) -> float:
        if step >= warmup_steps:
            return schedule(step)
        return start_factor + (1 - start_factor) * step / warmup_steps

    return factor
