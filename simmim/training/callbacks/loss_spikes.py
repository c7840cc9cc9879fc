"""Detects loss spikes: losses far above the ones before them."""

from collections.abc import Sequence
from statistics import median

from simmim.utils.errors import UserError

# Number of recent losses to compare with; with fewer than half of them nothing is reported.
_WINDOW = 100
# A spike also exceeds the median by this many median absolute deviations: late in a training on few
# images, losses are small and scatter widely.
_SCATTER = 20.0


class SpikeDetector:
    """Detects the first step of a spike; a spike of several steps is reported once.

    Args:
        factor: a loss above this many times the median of the last losses is a spike (None: never).
        losses: the last losses, when a run is resumed.
        is_high: whether the last of them was in a spike.

    Raises:
        UserError: a factor of 1 or less.
    """

    def __init__(
        self, factor: float | None, losses: Sequence[float] = (), *, is_high: bool = False
    ) -> None:
        if factor is not None and factor <= 1:
            raise UserError(f"guard.spike_factor {factor} is not above 1; use 3, or null for none")
        self.factor = factor
        self.losses = list(losses)
        self.is_high = is_high

    def begins(self, loss: float) -> bool:
        """Adds the next (finite) loss; True if it is the first of a spike."""
        was_high, self.is_high = self.is_high, self._is_high(loss)
        self.losses = [*self.losses, loss][-_WINDOW:]
        return self.is_high and not was_high

    @property
    def median(self) -> float:
        """The median of the last losses."""
        return median(self.losses)

    def _is_high(self, loss: float) -> bool:
        if self.factor is None or len(self.losses) < _WINDOW // 2:
            return False
        usual = self.median
        if loss <= self.factor * usual:
            return False
        return loss - usual > _SCATTER * median(abs(other - usual) for other in self.losses)
