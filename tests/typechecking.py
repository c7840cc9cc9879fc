"""The type checker that the tests switch on: beartype, with an int where a float is asked for."""

import inspect
import sys
from typing import Any, get_origin

from beartype import BeartypeConf, beartype
from typing_extensions import Unpack

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(decorated: Any) -> Any:
    """Checks calls; on Python 3.10, beartype takes `**options: Unpack[…]` for a type variable."""
    hints = decorated.__annotations__ if inspect.isfunction(decorated) else {}
    unpacked = [name for name, hint in hints.items() if get_origin(hint) is Unpack]
    if sys.version_info >= (3, 11) or not unpacked:
        return _check(decorated)
    decorated.__annotations__ = hints | dict.fromkeys(unpacked, Any)
    try:
        wrapper = _check(decorated)
    finally:
        decorated.__annotations__ = hints
    wrapper.__annotations__ = hints
    return wrapper
