"""Turns command-line arguments into Hydra overrides; the only place that does so.

Hydra parses a value with a grammar of lists, sweeps and functions, which rejects many paths: those
with `ü`, `=`, `#`, `(` or a quote. The value of a text option (a path or a name) is taken literally
and quoted before Hydra sees it, so that the record of the run, a sweep's jobs and further processes
get the same value. For other options, a value that the grammar rejects is passed on as text, which
the type check then rejects, naming the option.

A text that can be read in two ways (`a,b` in a sweep, or `[a]` for an option that takes lists) is a
path if a file of that name exists; otherwise the grammar decides.
"""

import os
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf.errors import GrammarParseError
from omegaconf.grammar_parser import parse as parse_interpolation

from simmim.cli.known_options import groups
from simmim.training.run_dir.config_record import literal
from simmim.utils.errors import UserError

# Options whose values are paths, in which the shell may have left a ~ unexpanded.
PATHS = frozenset(
    {
        *("run_dir", "resume", "init.checkpoint", "mask.file", "peers.official"),
        *(
            "data.root",
            "data.val_root",
            "data.name",
            "data.exclude",
            "data.statistics",
            "data.labels",
        ),
    }
)
# Options that are paths in some stages only: elsewhere, `images` is a number.
PATHS_OF_STAGE = {
    "analysis": frozenset({"checkpoint", "other"}),
    "evaluate": frozenset({"checkpoint"}),
    "export": frozenset({"checkpoint", "output"}),
    "reconstruct": frozenset({"checkpoint", "images"}),
}
# Options whose values are names.
NAMES = frozenset(
    {
        *("data.subset", "data.image_column", "data.label_column", "data.image_key"),
        *("data.train_split", "data.val_split", "save.monitor", "objective"),
        *("task.column", "task.separator"),
        *("logger.mlflow.experiment", "logger.mlflow.name", "logger.mlflow.tracking_uri"),
        *("logger.wandb.project", "logger.wandb.name", "logger.wandb.entity"),
        "logger.wandb.group",
    }
)
# Text options that also take a list.
LISTS = frozenset({"data.root", "data.val_root", "data.image_key", "images"})

# Hydra's flags: without a value, with a value, and with an optional value.
FLAGS = frozenset(
    {
        *("-h", "--help", "--hydra-help", "--version", "--resolve", "-r", "--run"),
        *("-m", "--multirun", "-sc", "--shell-completion"),
    }
)
FLAGS_WITH_VALUE = frozenset(
    {
        *("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name"),
        *("-cd", "--config-dir", "--experimental-rerun"),
    }
)
FLAGS_WITH_CHOICE = frozenset({"-i", "--info"})

_PATH_IS = {
    "analysis": "checkpoint",
    "evaluate": "checkpoint",
    "export": "checkpoint",
    "reconstruct": "images",
}


class Words(NamedTuple):
    """A command line's arguments: options (`name=value`), and Hydra's flags."""

    options: list[str]
    flags: list[str]

    @property
    def is_sweep(self) -> bool:
        """Whether several jobs are asked for."""
        asked = {"-m", "--multirun"} & set(self.flags)
        return bool(asked) or any(option == "hydra.mode=MULTIRUN" for option in self.options)


def as_overrides(arguments: Sequence[str], stage: str) -> list[str]:
    """A stage's arguments for Hydra: options, quoted where needed, then Hydra's flags.

    Raises:
        UserError: an argument is not an option, or has several values outside of a sweep.
    """
    words = split_flags(arguments)
    _require_pairs(words.options, stage)
    return [*(as_override(word, stage, words.is_sweep) for word in words.options), *words.flags]


def split_flags(arguments: Sequence[str]) -> Words:
    """Separates options from Hydra's flags, which may be mixed.

    Raises:
        UserError: an argument begins with a dash and is not a flag of Hydra.
    """
    words = Words([], [])
    left = list(arguments)
    while left:
        word = left.pop(0)
        name, has_value, _ = word.partition("=")
        takes_next = name in FLAGS_WITH_VALUE or (
            name in FLAGS_WITH_CHOICE and bool(left) and "=" not in left[0]
        )
        if name in FLAGS | FLAGS_WITH_VALUE | FLAGS_WITH_CHOICE:
            words.flags.append(word)
            if takes_next and not has_value and left:
                words.flags.append(left.pop(0))
        elif word.startswith("-"):
            plain = word.lstrip("-")
            if "=" not in plain and left and not left[0].startswith("-") and "=" not in left[0]:
                word, plain = f"{word} {left[0]}", f"{plain}={left[0]}"
            elif "=" not in plain:
                plain += "=VALUE"
            raise UserError(f"{word}: options are written without dashes; use {plain}")
        else:
            words.options.append(word)
    return words


def _require_pairs(options: Sequence[str], stage: str) -> None:
    """Raises UserError for a word that is not `name=value`."""
    for at, word in enumerate(options):
        before, after = options[at - 1] if at else "", [*options[at + 1 : at + 3], "", ""]
        name, equals, _ = word.partition("=")
        if word.startswith("~") and not equals and "/" not in word[:2]:
            continue  # Hydra's syntax to remove an option
        if equals and name.strip():
            # `name= value` is reported at its second word.
            continue
        if equals:
            raise UserError(f"{word} has no name before =; options are written name=value")
        if after[0] == "=":
            meant = f"{word} = {after[1]}".rstrip()
            raise UserError(f"{meant}: no spaces around =; use {word}={after[1] or 'VALUE'}")
        if after[0].startswith("="):
            raise UserError(f"{word} {after[0]}: no spaces around =; use {word}{after[0]}")
        if before.endswith("="):
            raise UserError(f"{before} {word}: no spaces around =; use {before}{word}")
        start, colon, end = word.partition(":")
        if colon and "/" not in start and start:
            raise UserError(f"{word} has no =; use {start}={end or 'VALUE'}")
        if "/" in word or word.startswith(("~", ".")) or os.path.exists(word):  # noqa: PTH110
            raise UserError(f"{word} is no option; use {path_option(stage)}={shown(word)}")
        if after[0] and "=" not in after[0]:
            raise UserError(f"{word} {after[0]}: options are written with =; use {word}={after[0]}")
        meant = f"{word}.{after[0]}" if after[0] and word in groups() else f"{word}=VALUE"
        raise UserError(f"{word} has no value; use {meant}")


def path_option(stage: str) -> str:
    """The option that a bare path, without `name=`, is most likely meant for."""
    return _PATH_IS.get(stage, "data=imagefolder data.root")


def as_override(word: str, stage: str, is_sweep: bool) -> str:
    """One option, `name=value`, for Hydra's grammar; unchanged if Hydra reads it as meant.

    Raises:
        UserError: the name cannot be an option's, or there are several values outside of a sweep.
    """
    name, equals, value = word.partition("=")
    if not equals:
        return word
    bare = name.lstrip("+~")
    if _parsed(f"{name}=1") is None:
        raise UserError(f"{word}: {bare!r} is no option's name; --cfg job shows all options")
    parsed = _parsed(word)
    is_path = bare in PATHS | PATHS_OF_STAGE.get(stage, frozenset())
    if is_path or bare in NAMES:
        typed = _as_text(bare, value, parsed, is_path, is_sweep)
        return f"{name}={typed}"
    if parsed is None:
        return f"{name}={quoted(value)}"
    if parsed.is_sweep_override() and not is_sweep:
        listed = "" if "(" in value else f"{name}=[{value}] for a list, or "
        raise UserError(f"{word} are several values; use {listed}-m to run a job with each")
    return word


def _as_text(name: str, value: str, parsed: Override | None, is_path: bool, is_sweep: bool) -> str:
    """The value of an option that takes a path or a name."""
    text: str | None = value
    is_there = _exists(value)
    if not is_there:
        if is_sweep and parsed is not None and parsed.is_sweep_override():
            return _as_sweep(parsed, value)
        if name in LISTS and value.startswith("[") and value.endswith("]"):
            return value if parsed is not None else f"[{_each_quoted(value[1:-1])}]"
        if is_sweep and parsed is None and "," in value:
            return _each_quoted(value)
        text = _text(parsed, value)
    if text is None:
        return value
    if is_path and text.startswith("~") and not _exists(text):
        text = os.path.expanduser(text)  # noqa: PTH111  a Path would normalise the rest, too
    # Kept as typed if the meaning is the same: a sweep's jobs are named by it.
    is_same = text == value == _value(parsed) and not (is_there and "${" in value)
    return value if is_same else quoted(text)


def _each_quoted(values: str) -> str:
    return ",".join(quoted(value.strip()) for value in values.split(","))


def _text(parsed: Override | None, value: str) -> str | None:
    """The text that the user means; None for null."""
    if parsed is None or parsed.is_sweep_override():
        return value.strip()
    meant = parsed.value()
    if meant is None:
        return None
    # The user may have quoted or escaped it for Hydra; numbers, lists and so on are text here.
    return meant if isinstance(meant, str) else value.strip()


def _as_sweep(parsed: Override, value: str) -> str:
    """A sweep over texts, even if they look like numbers."""
    sweep = parsed.value()
    if not isinstance(sweep, ChoiceSweep) or not sweep.simple_form:
        return value
    are_texts = all(isinstance(entry, (str, QuotedString)) for entry in sweep.list)
    return value if are_texts else _each_quoted(value)


def _value(parsed: Override | None) -> Any:
    return None if parsed is None or parsed.is_sweep_override() else parsed.value()


def _parsed(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _exists(value: str) -> bool:
    """Whether a file or folder of this name exists; False for a blank or impossible name."""
    try:
        return bool(value.strip()) and os.path.lexists(value)
    except (OSError, ValueError):
        return False


def quoted(text: str) -> str:
    """A text as a quoted Hydra value; `${…}` stays an interpolation if OmegaConf can parse it."""
    if "${" in text and (_exists(text) or not _is_interpolation(text)):
        text = literal(text)
    return str(QuotedString(text, Quote.double).with_quotes())


def _is_interpolation(text: str) -> bool:
    try:
        parse_interpolation(text)
    except GrammarParseError:
        return False
    return True


def shown(value: str) -> str:
    """A value as it is typed in a shell."""
    return shlex.quote(value)
