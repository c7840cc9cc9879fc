"""Export to a folder that Hugging Face's `from_pretrained` loads."""

from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from simmim.checkpoints.formats.hugging_face import to_hf
from simmim.checkpoints.formats.hugging_face_config import (
    CONFIG,
    PREPROCESSOR,
    create_config,
    create_preprocessor,
)
from simmim.checkpoints.model_file import TrainedModel
from simmim.models.swin.position_bias import relative_offset_index
from simmim.utils.files import as_json
from simmim.utils.sizes import Pair


def save_hugging_face(trained: TrainedModel, folder: Path, problem_type: str | None = None) -> str:
    """Writes configuration, weights and preprocessing; returns the line of Python that loads them.

    `problem_type` is Hugging Face's name for what a head was trained for (None: one class an image).

    Raises:
        UserError: a model that Hugging Face's classes do not support.
    """
    config = create_config(trained.model, trained.classes, problem_type)
    preprocessor = create_preprocessor(
        trained.encoder, trained.normalisation, trained.held_out_crop
    )
    folder.mkdir(parents=True, exist_ok=True)
    weights = to_hf(trained.model.state_dict())
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    tensors |= _derived_indices(weights, trained.encoder.window_size)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in ((CONFIG, config), (PREPROCESSOR, preprocessor)):
        (folder / name).write_text(as_json(content) + "\n", encoding="utf-8")
    return f"transformers.{config['architectures'][0]}.from_pretrained({str(folder)!r})"


def _derived_indices(names: Iterable[str], window_size: Pair) -> dict[str, Tensor]:
    """Index buffers of V1, which transformers before 5 leaves uninitialised if the file lacks them."""
    table, index = "relative_position_bias_table", "relative_position_index"
    return {
        name.replace(table, index): relative_offset_index(window_size)
        for name in names
        if name.endswith(table)
    }
