"""`encoder.safetensors`: an encoder's weights with all that rebuilds it, and nothing that runs."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from simmim.checkpoints.checksums import checksum_of
from simmim.checkpoints.description import describe_encoder
from simmim.checkpoints.loading import load_encoder_weights
from simmim.checkpoints.published import warn_of_padding
from simmim.checkpoints.reading import read_weights
from simmim.encoder import SwinTransformer
from simmim.errors import UserError
from simmim.normalisation import Normalisation
from simmim.writing import written_beside


def save_encoder(
    encoder: SwinTransformer,
    path: str | Path,
    normalisation: Normalisation = Normalisation(),
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes the encoder's weights with their description as metadata.

    `weights` are its whole state dict where the encoder itself holds a part of it.
    """
    whole = encoder.state_dict() if weights is None else weights
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in whole.items()}
    save_described(tensors, path, describe_encoder(encoder, normalisation))


def save_described(
    tensors: dict[str, Tensor], path: str | Path, description: Mapping[str, Any]
) -> None:
    """Writes tensors with what describes them, whole or not at all, and a checksum of both.

    The same content gives the same bytes: safetensors writes several metadata keys in any order, so
    there is one.
    """
    checksum = checksum_of(tensors, json.dumps(description))
    metadata = {"simmim": json.dumps({**description, "crc32": checksum})}
    with written_beside(path) as beside:
        save_file(tensors, beside, metadata=metadata)
        # safetensors makes files that only their owner reads, whatever the umask allows others.
        os.umask(mask := os.umask(0))
        beside.chmod(0o666 & ~mask)


def load_encoder(path: str | Path) -> SwinTransformer:
    """Rebuilds an encoder from `encoder.safetensors` or a training checkpoint of simmim.

    Raises:
        UserError: the file is missing, damaged, or not one that simmim writes.
    """
    weights = read_weights(path)
    if weights.description is None:
        raise UserError(
            f"{path} does not say what encoder it holds ({weights.origin} weights); "
            "build it with simmim.create_encoder and load simmim.checkpoints' conversion into it"
        )
    encoder = SwinTransformer(**weights.description["arguments"])
    warn_of_padding(encoder, weights.origin)
    load_encoder_weights(
        encoder, weights.encoder, source=str(path), window_sizes=weights.window_sizes
    )
    return encoder
