"""Checks a composed configuration against the signatures of what it will build."""

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

from beartype import BeartypeConf
from beartype.door import is_bearable
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from typing_extensions import Unpack, is_typeddict

from simmim.utils.errors import UserError

# Seeds of Lightning and NumPy have 32 bits.
_SEEDS = 2**32
# How other programs write booleans.
_BOOLEANS = {
    **dict.fromkeys(("yes", "on", "1", "y", "t"), "true"),
    **dict.fromkeys(("no", "off", "0", "n", "f", "null", "none"), "false"),
}
# Accepts an int where a float is expected.
_NUMERIC_TOWER = BeartypeConf(is_pep484_tower=True)


def check(config: DictConfig, stage: Callable[..., Any]) -> None:
    """Checks options against the stage's parameters, and each `_target_` node against its target's.

    A node that the stage takes as a TypedDict and does not build is checked against the TypedDict
    alone; its other keys are left to the stages that read them, and nothing is imported.

    Raises:
        UserError: a key that the stage or target does not take, or a value of another type.
    """
    given = OmegaConf.to_container(config, resolve=True)
    assert isinstance(given, dict)
    taken = options(stage)
    _check_arguments(taken, given, "")
    for name, value in given.items():
        _check_values(str(name), value)
    if isinstance(seed := given.get("seed"), int) and not 0 <= seed < _SEEDS:
        raise UserError(
            f"seed={seed} is not in 0 to {_SEEDS - 1}; use seed=0, or any other of these"
        )
    for key, value in given.items():
        name = str(key)
        if is_typeddict(taken.get(name)) and isinstance(value, dict):
            read = get_type_hints(taken[name])
            _check_arguments(read, {key: value[key] for key in read if key in value}, f"{name}.")
            continue
        for path, node in _targets(value, name):
            _check_arguments(options(get_object(node["_target_"])), node, f"{path}.")


def options(function: Callable[..., Any]) -> dict[str, Any]:
    """The parameters of a function or class, by name, with their types (Any if not annotated).

    The keys of `**options: Unpack[…]` are included.
    """
    parameters = inspect.signature(function).parameters
    # A NamedTuple is annotated in its body, other classes in their constructor.
    is_plain_class = inspect.isclass(function) and not hasattr(function, "_fields")
    hints = get_type_hints(function.__init__ if is_plain_class else function)
    taken = {}
    for name, parameter in parameters.items():
        hint = hints.get(name, Any)
        if parameter.kind is not parameter.VAR_KEYWORD:
            taken[name] = hint
        elif get_origin(hint) is Unpack:
            taken |= get_type_hints(get_args(hint)[0])
    return taken


def _check_values(name: str, value: Any) -> None:
    """Raises UserError for a value that no option can have.

    An empty text, as a path, would be the working directory; a number that is not finite would make
    the results not finite; integers of more than 64 bits do not fit into tensors.
    """
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_values(f"{name}.{key}", entry)
    elif isinstance(value, list):
        for entry in value:
            _check_values(name, entry)
    elif isinstance(value, str) and not value.strip():
        raise UserError(
            f"{name}= is empty: is a variable not set? Give it a value, or leave it out"
        )
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}={value} is not finite; use a number")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UserError(f"{name}={value} has more than 64 bits; use a smaller number")


def _check_arguments(taken: dict[str, Any], arguments: dict[Any, Any], prefix: str) -> None:
    for name, value in arguments.items():
        if str(name).startswith("_"):
            continue
        if name not in taken:
            raise UserError(f"{prefix}{name} is no option; there are {', '.join(taken)}")
        hint = taken[str(name)]
        # Such a node is checked against its own target or TypedDict.
        if isinstance(value, dict) and (
            "_target_" in value or hint in (Any, DictConfig) or is_typeddict(hint)
        ):
            continue
        if not is_bearable(value, hint, conf=_NUMERIC_TOWER):
            raise UserError(f"{prefix}{name}={_show(value)} {_constraint(hint, value)}")


def _targets(node: Any, path: str) -> Iterator[tuple[str, dict[Any, Any]]]:
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        yield path, node
    for name, value in node.items():
        yield from _targets(value, f"{path}.{name}" if path else str(name))


def _show(value: Any) -> str:
    return "null" if value is None else str(value)


def _constraint(hint: Any, value: Any) -> str:
    kinds = get_args(hint) or (hint,)
    if hint is DictConfig or is_typeddict(hint):
        return "has options of its own; set those, by a dot and their name"
    told = f"is not of type {_show_type(hint)}"
    if bool in kinds and str(value).lower() in _BOOLEANS:
        return f"{told}; use {_BOOLEANS[str(value).lower()]}"
    if isinstance(value, str) and value.endswith("%") and _is_number(value[:-1]):
        return f"{told}; use {float(value[:-1]) / 100:g}"
    if isinstance(value, float) and value.is_integer() and int in kinds and abs(value) < _SEEDS:
        return f"{told}; use {int(value)}"
    listed = [str(choice) for part in (hint, *kinds) for choice in _choices(part)]
    return f"is unknown; use {' or '.join(listed)}" if listed else told


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _choices(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) is Literal else ()


def _show_type(hint: Any) -> str:
    name = hint.__name__ if inspect.isclass(hint) else str(hint)
    for verbose in ("typing.", "collections.abc.", "pathlib."):
        name = name.replace(verbose, "")
    return name.replace("None", "null")
