"""Mistakes that a user can fix, each in one line: the option as typed, and what would work.

Errors of Hydra, OmegaConf and the operating system are rephrased in the documentation's terms. Any
other error is a bug of the program and keeps its traceback.
"""

import difflib
import errno
import re
import sys
from collections.abc import Callable, Iterator, Sequence

from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf.errors import (
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from simmim.cli.arguments import path_option
from simmim.cli.known_options import choices, choices_with, groups, option_names
from simmim.utils.errors import DoesNotFitError, UserError

# Hydra plugins that are installed with an extra of simmim.
_EXTRAS = {"submitit_local": "submitit", "submitit_slurm": "submitit"}
# Errors of the operating system, and what to do about them.
_WAYS_OUT = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room there, or use another path"
    ),
    **dict.fromkeys(
        (errno.EROFS, errno.EACCES, errno.EPERM), "change its permissions, or use another path"
    ),
    errno.ENOENT: "see whether it was moved or removed while the command ran",
    errno.ENOTDIR: "a part of this path is a file; use another path",
    errno.EISDIR: "name a file in it, or move the folder away",
    errno.EEXIST: "move it away, or use another path",
    errno.ENAMETOOLONG: "use a shorter path",
    errno.ELOOP: "its links lead in a circle; use another path",
    **dict.fromkeys(
        (errno.EMFILE, errno.ENFILE), "allow more (ulimit -n 65536), or use fewer data.num_workers"
    ),
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ENOTCONN, errno.EHOSTDOWN),
        "see what ails the disk or its network; the same command then goes on from the last checkpoint",
    ),
    errno.ENOMEM: "free some memory, or use fewer data.num_workers",
    errno.EPIPE: "what it was written to has ended",
}
_LONGEST_SHOWN = 200


def mendable(error: BaseException) -> BaseException | None:
    """The error or its cause, if the user can fix it; else None."""
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, UserError):
            return cause
    for cause in chain:
        # Hydra's error for a missing file of conf/ derives from OSError, but is not a system error.
        if isinstance(cause, OSError) and not isinstance(cause, HydraException):
            return UserError(describe_os_error(cause))
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return UserError("a path has a character of value 0 in it; no file's name can have one")
    if isinstance(error, ValueError) and str(error).startswith("Config group override must"):
        return UserError(
            "a group of options, such as model or experiment, cannot be null; leave it out"
        )
    composing = isinstance(error, (HydraException, OmegaConfBaseException))
    return error if composing and not isinstance(error, InstantiationException) else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def describe_os_error(error: OSError) -> str:
    """One line for an error of the operating system: path, reason, what to do."""
    number, reason, path = error.errno, error.strerror, error.filename
    if number is None:
        # An error of a DataLoader worker arrives as text, after the worker's traceback.
        last = str(error).strip().rpartition("\n")[2]
        told = re.search(r"\[Errno (\d+)\] ([^:]*)(?:: '(.*?)')?(?: -> '.*')?$", last)
        if told is None:
            return last or type(error).__name__
        number, reason, path = int(told[1]), told[2], told[3]
    where = "a file of the run" if path is None else str(path)
    if len(where) > _LONGEST_SHOWN:
        where = f"{where[:_LONGEST_SHOWN]}…"
    way_out = _WAYS_OUT.get(number, "use another path")
    return f"{where}: {reason or 'input or output failed'}; {way_out}"


def explain(error: BaseException, stage: str) -> str:
    """One line for a mistake: the value, the constraint, what to do."""
    # An error of a DataLoader worker arrives after the worker's traceback.
    message = str(error).rpartition(f"{type(error).__name__}: ")[2]
    if isinstance(error, DoesNotFitError):
        return message
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        told = _in_own_words(error, message, stage)
        if told is not None:
            return told
    return "; ".join(line.strip() for line in message.splitlines() if line.strip())


def _in_own_words(error: Exception, message: str, stage: str) -> str | None:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_choice(error.missing_cfg_file, error.options or [], stage)
    for pattern, say in _ABOUT_NAMES.items():
        if named := re.search(pattern, message):
            return say(named[1], message, stage)
    if isinstance(error, MissingMandatoryValue):
        return f"{_full_key(message)}=??? stands for a value that is still to be set; set it"
    borrowed = [word for word in sys.argv[1:] if "${" in word]
    if "nterpolation" in message or borrowed:
        return _not_borrowed(borrowed[0] if borrowed else _full_key(message), message)
    if isinstance(error, ValidationError):
        return _not_taken(_full_key(message))
    return None


# Patterns of Hydra's messages about a name; each function takes the name, the message, the stage.
_ABOUT_NAMES: dict[str, Callable[[str, str, str], str]] = {
    r"Could not find '([^']+/[^']*)'": lambda name, message, stage: _unknown_choice(
        name, re.findall(r"^\t(\S+)$", message, re.MULTILINE), stage
    ),
    r"Could not load '([^']+/[^']*)'": lambda name, message, stage: _unknown_choice(
        name.removesuffix("."), [], stage
    ),
    r"Could not override '([^']+)'": lambda name, message, stage: unknown_option(name, stage),
    r"Could not delete .*?'([^']+)'": lambda name, message, stage: unknown_option(name, stage),
    r"(?:already at '|Multiple values for )([^'.]+)": lambda name, message, stage: (
        f"{name} is an option already; set it without +, {name}=VALUE"
    ),
    r"Error merging override (\S[^\n]*)": lambda name, message, stage: _not_taken(name),
}


def _not_taken(option: str) -> str:
    return f"{option} is no value that this option can have; --cfg all shows those that are set"


def _not_borrowed(option: str, message: str) -> str:
    """One line for an interpolation, `${…}`, that cannot be resolved."""
    reason = message.splitlines()[0].rpartition("interpolation: ")[2]
    if missing := re.search(r"key '([^']+)' not found", message):
        reason = f"there is no option {missing[1]} to take a value from"
    elif missing := re.search(r"nsupported interpolation type (\S+)", message):
        reason = f"there is nothing called {missing[1]} to take a value from"
    return rf"{option}: {reason}; where ${{ is part of a name, write \${{"


def _full_key(message: str) -> str:
    found = re.search(r"full_key: (\S+)", message)
    return found[1] if found else "an option"


def _unknown_choice(missing: str, known: Sequence[str], stage: str) -> str:
    """One line for a group's choice without a file: `data//my/images`, `hydra/launcher/slurm`."""
    group = next((group for group in groups() if missing.startswith(f"{group}/")), None)
    if group is None or group == "hydra":
        group = missing.rpartition("/")[0]
    choice = missing[len(group) + 1 :]
    if group.startswith("hydra/") and choice in _EXTRAS:
        return f'{group}={choice} is not installed; pip install "simmim[{_EXTRAS[choice]}]"'
    listed = known or (choices(group) if group in groups() else [])
    told = f"{group}={choice} is unknown; use {', '.join(sorted(listed))}"
    if "/" in choice or "." in choice:
        weights = path_option(stage)
        if group == "data":
            return f"{told}; a folder of images is data=imagefolder data.root={choice}"
        if group == "model":
            weights = weights if weights == "checkpoint" else "init.checkpoint"
            return f"{told}; a file of weights is {weights}={choice}"
    return told


def unknown_option(option: str, stage: str) -> str:
    """One line for an option that does not exist, with those that may have been meant."""
    known = list(option_names(stage))
    having = [choice for choice in choices_with(option) if option.partition(".")[0] in known]
    if having:
        return f"{option} is an option of {', '.join(having)}; set one of these beside it"
    plain = option.replace("/", ".")
    close = difflib.get_close_matches(plain, known, n=3, cutoff=0.6)
    last = plain.rpartition(".")[2]
    same_name = [name for name in known if name.rpartition(".")[2] == last]
    meant = list(dict.fromkeys(same_name + close))[:3]
    hint = f"did you mean {' or '.join(meant)}?" if meant else "--cfg job shows all options"
    return f"{option} is no option; {hint}"
