"""Reads weights of simmim and other programs, recognised by content, under simmim's names.

Nothing in a file is executed: pickles are read with `weights_only=True`.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from simmim.checkpoints.checksums import DamagedError, checksum_of, require_intact
from simmim.checkpoints.formats.hugging_face import from_hf
from simmim.checkpoints.formats.hugging_face_config import describe_folder
from simmim.checkpoints.formats.official import from_official, pretrained_windows
from simmim.checkpoints.formats.prefixes import find_model
from simmim.checkpoints.formats.timm import from_timm
from simmim.checkpoints.metadata import FORMAT_VERSION, EncoderDescription, is_description
from simmim.checkpoints.sharded.merge import is_sharded, read_whole
from simmim.utils.errors import UserError, first_line
from simmim.utils.normalization import Normalisation

# Files that a run writes at its end, and its subfolder for those of the run before it.
FINAL_WEIGHTS = ("classifier.safetensors", "model.safetensors", "encoder.safetensors")
EARLIER = "earlier"
# The second is V1's since version 5 of transformers.
_OF_HUGGING_FACE = (".attention.self.", ".attention.q_proj.", ".continuous_position_bias_mlp.")
# Classes in which training programs store their arguments and options.
_PATHS = ("PosixPath", "WindowsPath")
# Python 3.13 writes its paths under another name.
_SETTINGS = (
    "argparse.Namespace",
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
)
_FOLDER_FILES = (*FINAL_WEIGHTS, "pytorch_model.bin")


class Weights(NamedTuple):
    """A model's weights under simmim's names: `encoder.…`, and head and mask token if it has them.

    `description` is set if simmim wrote the file, or if there is a `config.json` beside it;
    `origin` is the program whose names the file had. `classes` are the names of a head's
    outputs, in order, if the file has them; `task` is what it was trained for.
    `pretrained_window_sizes` are those of the continuous position bias, by stage, if known.
    """

    tensors: dict[str, Tensor]
    description: EncoderDescription | None
    origin: str
    classes: tuple[str, ...] = ()
    pretrained_window_sizes: list[list[int]] | None = None
    task: str = "classification"

    @property
    def encoder(self) -> dict[str, Tensor]:
        """The encoder's weights alone, without the prefix."""
        return {
            name.removeprefix("encoder."): tensor
            for name, tensor in self.tensors.items()
            if name.startswith("encoder.")
        }

    @property
    def window_sizes(self) -> list[list[int]] | None:
        """`[height, width]` of the window by stage; None if the file does not say."""
        return None if self.description is None else self.description["window_sizes"]

    @property
    def normalisation(self) -> Normalisation | None:
        """What the model's input was normalised with; None if the file does not say."""
        if self.description is None:
            return None
        return Normalisation(tuple(self.description["mean"]), tuple(self.description["std"]))

    @property
    def num_classes(self) -> int | None:
        """Number of outputs of a head for labels; None without one."""
        head = self.tensors.get("head.linear.weight")
        return None if head is None or "mask_token" in self.tensors else head.shape[0]


def read_weights(path: str | Path) -> Weights:
    """Reads weights of simmim, the official code, timm, Hugging Face or SatVision.

    `path` is a file, a sharded checkpoint, or a folder that Hugging Face's `save_pretrained` or a run
    of simmim wrote.

    Raises:
        UserError: the path is missing, or the file is damaged or does not hold exactly one Swin
            Transformer.
    """
    path = weights_file(path)
    content, description = _open(path)
    tensors = find_model(content, path)
    if not tensors:
        raise UserError(f"{path} holds no weights; give a file with a model's state dict")
    if description is None:
        # A run's checkpoint has the description beside its weights.
        description = content.get("encoder") if is_description(content.get("encoder")) else None
        classes = tuple(map(str, content.get("classes", ())))
        task = str(content.get("task", "classification"))
    else:
        classes = tuple(description.get("classes", ()))
        task = description.get("task", "classification")
    if description is not None:
        # Lightning names weights by the task's attribute, `model`.
        ours = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        windows = description["arguments"]["pretrained_window_sizes"]
        return Weights(_with_prefix(ours), description, "simmim", classes, windows, task)
    origin, convert = _dialect(tensors, path)
    ours = _with_prefix(convert(tensors))
    if origin == "Hugging Face" and (path.parent / "config.json").is_file():
        described = describe_folder(path.parent)
        windows = described["arguments"]["pretrained_window_sizes"]
        return Weights(ours, described, origin, tuple(described.get("classes", ())), windows)
    windows = pretrained_windows(tensors)
    return Weights(ours, None, origin, pretrained_window_sizes=windows)


def weights_file(path: str | Path) -> Path:
    """The file that `read_weights` reads: the path itself, or the first known one in a folder.

    Raises:
        UserError: the path is missing, or a folder without weights.
    """
    path = Path(path)
    if is_sharded(path):
        return path
    if path.is_dir():
        for name in _FOLDER_FILES:
            if (path / name).is_file():
                return path / name
        before = f", or {path / EARLIER}, of the run before it" if _has_earlier(path) else ""
        raise UserError(
            f"{path} holds none of {', '.join(_FOLDER_FILES)}; give a file of weights, "
            f"such as its checkpoints/last.ckpt{before}"
        )
    if not path.is_file():
        raise UserError(
            f"checkpoint {path} does not exist; give a .safetensors, .ckpt or .pth file"
        )
    return path


def _has_earlier(run_dir: Path) -> bool:
    return any((run_dir / EARLIER / name).is_file() for name in FINAL_WEIGHTS)


def _open(path: Path) -> tuple[Mapping[str, Any], EncoderDescription | None]:
    """The file's content, and its description if it is a safetensors file of simmim."""
    try:
        require_intact(path)
    except DamagedError as error:
        raise UserError(f"{path} is damaged ({error}); copy or write it again") from error
    if is_sharded(path):
        return read_whole(path), None
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file starts with the length of its JSON header, eight bytes.
    if start[8:9] == b"{":
        return _open_safetensors(path)
    try:
        content = _unpickle(path)
    except Exception as error:  # torch raises many types of errors for a damaged or foreign file
        if "weights_only" in str(error) or "Unsupported global" in str(error):
            named = re.search(r"GLOBAL (\S+)", str(error))
            what = f" ({named[1].rstrip(',.')})" if named else ""
            raise UserError(
                f"{path} holds more than weights{what}, and simmim runs no code from a checkpoint; "
                "save the state dict alone and give that"
            ) from error
        raise UserError(
            f"{path} is damaged or no checkpoint ({first_line(error)}); copy or write it again"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}; give a file with a state dict")
    return content, None


def _unpickle(path: Path) -> Any:
    """Loads a file with `_Unread` in place of the classes in `_SETTINGS`: none of their code runs."""
    unread: Any = [(type(name.rpartition(".")[2], (_Unread,), {}), name) for name in _SETTINGS]
    with torch.serialization.safe_globals(unread):
        return torch.load(path, map_location="cpu", weights_only=True)


class _Unread:
    """Placeholder for an object that a training program stored beside its weights."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _open_safetensors(path: Path) -> tuple[Mapping[str, Any], EncoderDescription | None]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}); copy it again") from error
    if "simmim" not in metadata:
        return tensors, None
    try:
        description = json.loads(metadata["simmim"])
    except json.JSONDecodeError as error:
        raise UserError(f"{path} has damaged metadata ({error}); copy it again") from error
    # Earlier versions wrote the checksum beside the description.
    written = metadata.get("crc32")
    if isinstance(description, dict):
        written = description.pop("crc32", written)
    if written != checksum_of(tensors, json.dumps(description)):
        raise UserError(f"{path} is not as it was written (its checksum differs); copy it again")
    if not is_description(description):
        raise UserError(f"{path} has metadata that no version of simmim writes; write it again")
    if description["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{path} was written by a newer simmim (format {description['format_version']}, this one "
            f"reads {FORMAT_VERSION}); upgrade simmim"
        )
    return tensors, description


def _dialect(
    tensors: Mapping[str, Tensor], path: Path
) -> tuple[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]:
    """The program whose names these are, and the function that converts them."""
    names = set(tensors)
    if any(marker in name for name in names for marker in _OF_HUGGING_FACE):
        return "Hugging Face", from_hf
    if any(re.match(r"(encoder\.)?stages\.\d+\.blocks\.\d+\.attention\.", name) for name in names):
        return "simmim", dict
    if any(re.search(r"layers\.\d+\.blocks\.\d+\.attn\.", name) for name in names):
        # In timm, patch merging belongs to the stage after it, so the first has none.
        first_merges = any("layers.0.downsample." in name for name in names)
        return ("official", from_official) if first_merges else ("timm", from_timm)
    raise UserError(
        f"{path} holds no Swin Transformer that is known here (its first weight is "
        f"{min(names)}); give official, timm, Hugging Face or simmim weights"
    )


def _with_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adds the prefix that names have in a whole model to a bare encoder's."""
    if any(name.startswith("encoder.") for name in tensors):
        return dict(tensors)
    return {f"encoder.{name}": tensor for name, tensor in tensors.items()}
