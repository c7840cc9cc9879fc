"""Maps the data's classes to the outputs of a classification head, by name."""

from collections.abc import Sequence
from typing import Any

from simmim.utils.errors import UserError


def head_rows(
    classes: Sequence[str], *, outputs: int, known: Sequence[str] = (), source: str
) -> list[int]:
    """For each of the data's classes, the index of its output in a head with `outputs` outputs.

    Names are looked up in `known`, the head's own class names; if a file has none and as many
    outputs as ImageNet-1K or 22K has classes, in that set's synsets in the usual order. Folders
    that are all named by numbers, as in ImageNet-V2, are output indices. Outputs without any names
    are matched with the folders in order, if there are as many.

    Raises:
        UserError: the head lacks some of the classes, or has another number of them.
    """
    names = tuple(known) or imagenet_synsets(outputs)
    place = {name: row for row, name in enumerate(names)}
    unknown = [name for name in classes if name not in place]
    if not unknown:
        return [place[name] for name in classes]
    if len(unknown) == len(classes) and all(_is_output(name, outputs) for name in classes):
        return [int(name) for name in classes]
    if known:
        raise UserError(
            f"{source} was trained on {outputs} classes and {len(unknown)} of the data's "
            f"{len(classes)} are not among them ({_few(unknown)}; it has {_few(names)}); name the "
            "folders as the classes that it knows, or train a new head with python -m simmim.finetune"
        )
    if len(classes) != outputs:
        raise UserError(
            f"{source} has {outputs} outputs without names and the data has {len(classes)} classes; "
            "name the folders by output number, or train a new head with python -m simmim.finetune"
        )
    return list(range(outputs))


def imagenet_synsets(outputs: int) -> tuple[str, ...]:
    """The synsets (n01440764, …) of the ImageNet subset with this number of classes; () if none."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": outputs})
    if subset not in ("imagenet-1k", "imagenet-22k"):
        return ()
    info: Any = ImageNetInfo(subset)
    return tuple(info.label_names())


def as_synsets(names: Sequence[str]) -> tuple[str, ...]:
    """The synsets of an ImageNet subset if most names are its descriptions, else the names.

    Hugging Face names ImageNet's classes by description ("tench, Tinca tinca"); descriptions are
    not unique, and some differ between programs.
    """
    synsets = imagenet_synsets(len(names))
    if not synsets:
        return tuple(names)
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    info: Any = ImageNetInfo(str(infer_imagenet_subset({"num_classes": len(names)})))
    same = sum(a == b for a, b in zip(names, info.label_descriptions(), strict=True))
    return synsets if 2 * same > len(names) else tuple(names)


def _is_output(name: str, outputs: int) -> bool:
    return name.isdecimal() and str(int(name)) == name and int(name) < outputs


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
