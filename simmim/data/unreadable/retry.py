"""Explains why an image cannot be read, and retries after errors that may be temporary."""

import errno
import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from simmim.utils.errors import UnreadableImageError, UserError

Read = TypeVar("Read")

log = logging.getLogger(__name__)

# Errors of a network file system while its server is down or restarts.
_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EBUSY", "EINTR", "EREMOTEIO", "ENOTCONN"),
        *("ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "EHOSTDOWN", "EHOSTUNREACH"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET"),
    )
    if hasattr(errno, name)
)

# Seconds before each further attempt.
WAITS = (0.2, 1.0, 5.0)


def unreadable(name: str, error: BaseException | str) -> UnreadableImageError:
    """The error for an image of this name; `error` is what its reader raised, or a reason in words.

    Raises:
        UserError: `error` itself, if it is one, because the fault is not in this image.
    """
    if isinstance(error, UserError):
        raise error
    reason = error if isinstance(error, str) else _explain(error)
    # A missing library is not the image's fault, and the reason names it.
    way_out = "" if isinstance(error, ImportError) else "; remove or replace it"
    return UnreadableImageError(f"cannot read image {name} ({reason}){way_out}", reason)


def _explain(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no image of a known format"
    if isinstance(error, Image.DecompressionBombError):
        return "it has more pixels than data.max_pixels"
    if isinstance(error, FileNotFoundError):
        return "it is gone since the files were listed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def retry_transient_io(read: Callable[[], Read]) -> Read:
    """Returns the result of `read`; after a temporary error it is called again, up to three times.

    Whether an error is temporary is decided by the `errno` of the error or of its causes.
    """
    for wait in WAITS:
        try:
            return read()
        except (OSError, UserError) as error:
            if not is_passing(error):
                raise
            log.warning(f"{error}: tried again in {wait:g} s")
            time.sleep(wait)
    return read()


def is_passing(error: BaseException) -> bool:
    """Whether a further attempt may succeed."""
    return any(isinstance(one, OSError) and one.errno in _PASSING for one in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
