"""What a run tells its user."""

import logging

from lightning_utilities.core.rank_zero import rank_zero_only

log = logging.getLogger("simmim")


def say(message: str) -> None:
    """Logs for the user, once however many devices there are."""
    if _is_first():
        log.info(message)


def warn(message: str) -> None:
    """The same for what a user should look at."""
    if _is_first():
        log.warning(message)


def _is_first() -> bool:
    """Lightning tells the rank, once it is imported; a command without it is one process."""
    return getattr(rank_zero_only, "rank", 0) == 0
