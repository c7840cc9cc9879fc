"""Losses far above the ones before them."""

from collections.abc import Sequence
from statistics import median

from simmim.utils.errors import UserError

# So many losses are looked back on, and with fewer than half of them nothing is told.
_WINDOW = 100
# A spike also stands so many times further above the median than losses usually lie from it: late in
# a training on few images they are small and scatter widely.
_SCATTER = 20.0


class SpikeDetector:
    """Tells where a spike begins: one of several steps is told once.

    Args:
        factor: a spike is so many times the median of the last losses (None: there is none).
        losses: the last ones, of a run that goes on.
        is_high: whether a spike was under way then.

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
        """Whether this (finite) loss, the next one, is the first of a spike."""
        was_high, self.is_high = self.is_high, self._is_high(loss)
        self.losses = [*self.losses, loss][-_WINDOW:]
        return self.is_high and not was_high

    @property
    def median(self) -> float:
        """Of the last losses."""
        return median(self.losses)

    def _is_high(self, loss: float) -> bool:
        if self.factor is None or len(self.losses) < _WINDOW // 2:
            return False
        usual = self.median
        if loss <= self.factor * usual:
            return False
        return loss - usual > _SCATTER * median(abs(other - usual) for other in self.losses)
