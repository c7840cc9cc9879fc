"""Finds the one model in a file of weights, without other programs' wrappers and name prefixes."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simmim.utils.console import say
from simmim.utils.errors import UserError

# Keys under which other programs store a state dict. EMA weights come first, as in timm.
_WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict"),
    *("module", "model", "state_dict", "model_state", "model_state_dict", "net"),
)
# What PyTorch's wrappers insert into names, anywhere in a model.
_INSERTED = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# The counter that PyTorch's AveragedModel stores beside the weights.
_COUNTER = "n_averaged"
# Where an encoder's names begin: simmim's, Hugging Face's, and the official ones and timm's.
_BLOCK = re.compile(
    r"(?P<before>|.*?\.)"
    r"(stages\.\d+\.blocks\.\d+\.attention|encoder\.layers\.\d+\.blocks\.\d+\.attention"
    r"|layers\.\d+\.blocks\.\d+\.attn)\."
)
# The encoder's prefix within a whole model of Hugging Face, and of simmim and the official code.
_HF = ("swinv2.", "swin.")
_OURS = ("encoder.",)
# Names outside the encoder in such a model.
_OUTSIDE = ("head.", "mask_token", "classifier.", "decoder.0.")
_LISTED = 4


def find_model(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of the one Swin Transformer in a file, under its program's own names.

    Logs what else is in the file and left out.

    Raises:
        UserError: there are several models, or two tensors with the same name.
    """
    tensors: dict[str, Tensor] = {}
    for written, tensor in _flatten(_unwrap(content)):
        name = ".".join(part for part in written.split(".") if part not in _INSERTED)
        if name == _COUNTER:
            continue
        if name in tensors:
            raise UserError(
                f"{path} has two tensors for {name}, one of them {written}; remove either"
            )
        tensors[name] = tensor
    found = sorted({match["before"] for name in tensors if (match := _BLOCK.match(name))})
    if len(found) > 1:
        last = found[-1]
        raise UserError(
            f"{path} holds {len(found)} models, under {' and '.join(map(repr, found))}; save the one "
            f"that is meant to a file of its own, the names that start with {last!r}, for example"
        )
    return _below(found[0], tensors, path) if found else tensors


def _below(before: str, tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The model of the encoder whose names start with `before`, with its head and mask token."""
    root = _root(before, tensors)
    others = [name for name in tensors if not name.startswith(root)]
    if others:
        more = ", …" if len(others) > _LISTED else ""
        say(
            f"{path}: the model is what stands under {root!r}; {len(others)} other tensors are left "
            f"out ({', '.join(others[:_LISTED])}{more})"
        )
    return {
        name.removeprefix(root): tensor for name, tensor in tensors.items() if name.startswith(root)
    }


def _root(before: str, tensors: Mapping[str, Tensor]) -> str:
    """The prefix of the whole model, if it is a model of the encoder's own program.

    If another program uses the encoder in a model with unknown parts, the encoder's own prefix.
    """
    is_hf = any(name.startswith(f"{before}encoder.layers.") for name in tensors)
    own = next(
        (own for own in (_HF if is_hf else _OURS) if before == own or before.endswith(f".{own}")),
        "",
    )
    root = before.removesuffix(own)
    if any(name.startswith(f"{before}layers.") for name in tensors):
        is_simmim = f"{before}mask_token" in tensors or f"{root}decoder.0.weight" in tensors
        return root if is_simmim else before
    others = [
        name.removeprefix(root)
        for name in tensors
        if name.startswith(root) and not name.startswith(before)
    ]
    return root if all(name.startswith(_OUTSIDE) for name in others) else before


def _unwrap(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Unwraps `{"model": {...}}` and similar nesting, at any depth."""
    for name in _WRAPPERS:
        inner = content.get(name)
        if isinstance(inner, Mapping) and any(True for _ in _flatten(inner)):
            return _unwrap(inner)
    return content


def _flatten(content: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its dotted name, made of the keys that lead to it."""
    for name, value in content.items():
        if torch.is_tensor(value):
            yield f"{before}{name}", value
        elif isinstance(value, Mapping):
            yield from _flatten(value, f"{before}{name}.")
