"""`encoder.safetensors`: an encoder's weights with all that rebuilds it, and nothing that runs."""

import json
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from simmim.encoder import SwinTransformer
from simmim.errors import UserError
from simmim.normalisation import Normalisation

FORMAT_VERSION = 1


class EncoderDescription(TypedDict):
    """What a file says of its encoder, in JSON's types."""

    format_version: int
    arguments: dict[str, Any]
    window_sizes: list[list[int]]
    mean: list[float]
    std: list[float]


def describe_encoder(encoder: SwinTransformer, normalisation: Normalisation) -> EncoderDescription:
    """Architecture, image size, windows by stage, and the normalisation of its input."""
    return {
        "format_version": FORMAT_VERSION,
        "arguments": encoder.arguments,
        "window_sizes": [list(window) for window in encoder.window_sizes],
        "mean": list(normalisation.mean),
        "std": list(normalisation.std),
    }


def save_encoder(
    encoder: SwinTransformer, path: str | Path, normalisation: Normalisation = Normalisation()
) -> None:
    """Writes the encoder's weights with their description as metadata."""
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()
    }
    metadata = {"simmim": json.dumps(describe_encoder(encoder, normalisation))}
    save_file(tensors, path, metadata=metadata)


def load_encoder(path: str | Path) -> SwinTransformer:
    """Rebuilds an encoder from `encoder.safetensors` or a training checkpoint of simmim.

    Raises:
        UserError: the file is missing, damaged, or not one that simmim writes.
    """
    description, tensors = read_encoder(path)
    encoder = SwinTransformer(**description["arguments"])
    try:
        encoder.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path} does not hold the weights that it describes: {error}") from error
    return encoder


def read_encoder(path: str | Path) -> tuple[EncoderDescription, dict[str, Tensor]]:
    """The description and the weights in a file that simmim wrote; errors as in `load_encoder`."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; give a .safetensors or .ckpt file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_training_checkpoint(path)


def _read_safetensors(path: Path) -> tuple[EncoderDescription, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); copy or write it again") from error
    if "simmim" not in metadata:
        raise UserError(
            f"{path} has no simmim metadata, so its architecture is unknown; "
            "give an encoder.safetensors or a .ckpt that simmim wrote"
        )
    return json.loads(metadata["simmim"]), tensors


def _read_training_checkpoint(path: Path) -> tuple[EncoderDescription, dict[str, Tensor]]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as a checkpoint ({reason})") from error
    if not isinstance(checkpoint, dict) or "encoder" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint that simmim wrote; give one of its own")
    prefix = "model.encoder."
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    return checkpoint["encoder"], tensors
