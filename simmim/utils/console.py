"""Log messages for the user of a run."""

import logging

from lightning_utilities.core.rank_zero import rank_zero_only

log = logging.getLogger("simmim")


def say(message: str) -> None:
    """Logs a message for the user, on rank 0 only."""
    if _is_first():
        log.info(message)


def warn(message: str) -> None:
    """Logs a warning for the user, on rank 0 only."""
    if _is_first():
        log.warning(message)


def _is_first() -> bool:
    """Whether this is rank 0; without Lightning, which sets the rank, there is one process."""
    return getattr(rank_zero_only, "rank", 0) == 0
