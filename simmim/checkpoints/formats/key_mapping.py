"""Renames weights by a table of rules for each implementation, which is read in both directions."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from simmim.utils.errors import UserError

Weights: TypeAlias = dict[str, Tensor]
Names: TypeAlias = str | tuple[str, ...]
TensorsToTensors: TypeAlias = Callable[[Sequence[Tensor]], Sequence[Tensor]]

_OUR_PREFIX = "encoder."

# Computed from the window sizes by every implementation, yet stored in some checkpoints.
_DERIVED = re.compile(r"(.*\.)?(relative_coords_table|relative_position_index|attn_mask)")

# The first stage has no patch merging, so that `next` is 1 or more.
_FIELDS = {"stage": r"\d+", "next": r"[1-9]\d*", "block": r"\d+", "parameter": "weight|bias"}


class Change(NamedTuple):
    """How the tensors of a rule are converted; each direction is the exact inverse of the other."""

    to_ours: TensorsToTensors
    to_theirs: TensorsToTensors


def _keep(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return tensors


def _join(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return (torch.cat(tuple(tensors)),)


def _split(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    # Copies: safetensors refuses to save tensors that share their memory.
    return tuple(part.clone() for part in tensors[0].chunk(3))


KEEP = Change(_keep, _keep)
WE_JOIN_THREE = Change(_join, _split)
WE_SPLIT_IN_THREE = Change(_split, _join)
HEADS = Change(lambda scale: (scale[0].flatten(),), lambda scale: (scale[0].view(-1, 1, 1),))
TOKEN = Change(lambda token: (token[0].flatten(),), lambda token: (token[0].view(1, 1, -1),))
POINTWISE = Change(
    lambda kernel: (kernel[0].flatten(1),), lambda matrix: (matrix[0][:, :, None, None],)
)


class Rule(NamedTuple):
    """The name of the same weights in simmim (`ours`) and in another program (`theirs`).

    It is a tuple of names on a side that stores them in several tensors. A name may contain
    `{stage}`, `{next}` (the number of the stage after it), `{block}` and `{parameter}` (weight or
    bias). If several rules match a name, the first one is used.
    """

    ours: Names
    theirs: Names
    change: Change = KEEP


@dataclass(frozen=True)
class Dialect:
    """How another implementation names its models.

    Attributes:
        encoder: rules for the encoder's weights, without a prefix on either side.
        prefixes: possible prefixes of its encoder's names; there may also be none.
        classifier: name of its final layer's parameters, with `{parameter}`.
        classifier_prefix: prefix of its encoder's names in a classifier.
        mask_token: name within its encoder; empty if it has no SimMIM.
        reconstruction: name of its reconstruction head, a 1×1 convolution.
        simmim_prefix: prefix of its encoder's names in SimMIM.
    """

    encoder: tuple[Rule, ...]
    prefixes: tuple[str, ...]
    classifier: str
    classifier_prefix: str = ""
    mask_token: str = ""
    reconstruction: str = ""
    simmim_prefix: str = ""

    @property
    def classifier_rules(self) -> list[Rule]:
        """Rules for a classifier's weights outside its encoder."""
        return [Rule("head.linear.{parameter}", self.classifier)]

    def simmim_rules(self, prefix: str) -> list[Rule]:
        """Rules for SimMIM's weights outside its encoder; `prefix` is the other encoder's prefix."""
        if not self.mask_token:
            return []
        return [
            Rule("mask_token", prefix + self.mask_token, TOKEN),
            Rule("head.linear.weight", f"{self.reconstruction}.weight", POINTWISE),
            Rule("head.linear.bias", f"{self.reconstruction}.bias"),
        ]

    def encoder_rules(self, our_prefix: str, their_prefix: str) -> list[Rule]:
        """The encoder's rules with these prefixes, as in a whole model."""
        return [
            Rule(
                tuple(our_prefix + name for name in _as_tuple(rule.ours)),
                tuple(their_prefix + name for name in _as_tuple(rule.theirs)),
                rule.change,
            )
            for rule in self.encoder
        ]


def to_ours(weights: Mapping[str, Tensor], dialect: Dialect) -> Weights:
    """Renames another program's weights to simmim's; drops derived tables, keeps unknown names.

    With a mask token or a head, the encoder's names start with `encoder.`, as in `SimMIM` and
    `Classifier`; without either, they are those of `SwinTransformer`.
    """
    weights = {name: value for name, value in weights.items() if not _DERIVED.fullmatch(name)}
    prefix = _leading(weights, dialect.prefixes)
    outer = [_Way.to_ours(r) for r in (*dialect.simmim_rules(prefix), *dialect.classifier_rules)]
    has_head = any(way.read(name, weights) for name in weights for way in outer)
    inner = dialect.encoder_rules(_OUR_PREFIX if has_head else "", prefix)
    return _translate(weights, [*outer, *(_Way.to_ours(rule) for rule in inner)])


def to_theirs(weights: Mapping[str, Tensor], dialect: Dialect) -> Weights:
    """Renames simmim's weights to another program's; keeps unknown names.

    Weights with a mask token are SimMIM's, with a head alone a classifier's, else a bare encoder's.
    """
    if dialect.mask_token and "mask_token" in weights:
        prefix = dialect.simmim_prefix
        outer = dialect.simmim_rules(prefix)
    elif "head.linear.weight" in weights and "mask_token" not in weights:
        prefix = dialect.classifier_prefix
        outer = dialect.classifier_rules
    else:
        prefix, outer = "", []
    inner = dialect.encoder_rules(_leading(weights, (_OUR_PREFIX,)), prefix)
    return _translate(weights, [_Way.to_theirs(rule) for rule in (*outer, *inner)])


class _Way(NamedTuple):
    """A rule, read in one direction."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    change: TensorsToTensors

    @classmethod
    def to_ours(cls, rule: Rule) -> "_Way":
        return cls(_as_tuple(rule.theirs), _as_tuple(rule.ours), rule.change.to_ours)

    @classmethod
    def to_theirs(cls, rule: Rule) -> "_Way":
        return cls(_as_tuple(rule.ours), _as_tuple(rule.theirs), rule.change.to_theirs)

    def read(
        self, name: str, weights: Mapping[str, Tensor]
    ) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """The rule's source names, `name` included, and target names; None if it does not match."""
        for source in self.sources:
            match = _pattern(source).fullmatch(name)
            if match:
                fields = _with_neighbour(match.groupdict())
                sources = tuple(each.format(**fields) for each in self.sources)
                if all(each in weights for each in sources):
                    return sources, tuple(each.format(**fields) for each in self.targets)
        return None


def _translate(weights: Mapping[str, Tensor], ways: Sequence[_Way]) -> Weights:
    translated: Weights = {}
    done: set[str] = set()
    for name in weights:
        if name in done:
            continue
        sources: tuple[str, ...] = (name,)
        targets: tuple[str, ...] = (name,)
        change: TensorsToTensors = _keep
        for way in ways:
            names = way.read(name, weights)
            if names is not None:
                (sources, targets), change = names, way.change
                break
        values = change([weights[source] for source in sources])
        for target, value in zip(targets, values, strict=True):
            if target in translated:
                raise UserError(
                    f"checkpoint has two weights for {target}, one of them {name}; remove either"
                )
            translated[target] = value
        done.update(sources)
    return translated


def _leading(names: Iterable[str], prefixes: Sequence[str]) -> str:
    """The first of the prefixes that some name starts with, or an empty string."""
    names = list(names)
    found = (prefix for prefix in prefixes if any(name.startswith(prefix) for name in names))
    return next(found, "")


@cache
def _pattern(template: str) -> re.Pattern[str]:
    pattern = re.escape(template)
    for field, values in _FIELDS.items():
        pattern = pattern.replace(rf"\{{{field}\}}", f"(?P<{field}>{values})")
    return re.compile(pattern)


def _with_neighbour(fields: dict[str, str]) -> dict[str, str]:
    """Adds the stage after (`next`) or the stage before (`stage`), whichever is missing."""
    if "stage" in fields:
        return {**fields, "next": str(int(fields["stage"]) + 1)}
    if "next" in fields:
        return {**fields, "stage": str(int(fields["next"]) - 1)}
    return fields


def _as_tuple(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names
