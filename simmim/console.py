"""What a run tells its user."""

import logging

from pytorch_lightning.utilities import rank_zero_only

log = logging.getLogger("simmim")


@rank_zero_only
def say(message: str) -> None:
    """Logs for the user, once however many devices there are."""
    log.info(message)


@rank_zero_only
def warn(message: str) -> None:
    """The same for what a user should look at."""
    log.warning(message)
