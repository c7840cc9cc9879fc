"""Export of an encoder or classifier to ONNX, with a comparison of its outputs to PyTorch."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from simmim.checkpoints.model_file import TrainedModel
from simmim.models.classifier import HeadedEncoder
from simmim.models.swin import SwinTransformer
from simmim.utils.errors import UserError
from simmim.utils.files import as_json

TOLERANCE = 1e-4
OLDEST_OPSET = 18

# Protobuf files are limited to 2 GiB; larger models store their weights in a separate file.
_LARGEST_FILE = 2**31 - 2**24
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_onnx(opset: int) -> None:
    """Raises UserError unless the packages for ONNX are installed and support the `opset`."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"format=onnx needs {' and '.join(missing)}, not installed here; "
            "pip install 'simmim[onnx]'"
        )
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise UserError(
            f"opset={opset} is not between {OLDEST_OPSET}, the oldest that PyTorch writes, and "
            f"{newest}, the newest that onnx {onnx.__version__} knows; use opset={OLDEST_OPSET}"
        )


@torch.no_grad()
def save_onnx(trained: TrainedModel, path: Path, opset: int) -> float:
    """Writes an ONNX file and returns the largest difference of its outputs from PyTorch's.

    The input `images` is normalised, `b c h w` with any b; the output is `logits` of a classifier,
    `predictions` of a regression, otherwise `features`. Mean, standard deviation, image size and
    classes are in the file's `metadata_props` as JSON. The difference is measured with onnxruntime
    on batches of one and three images, relative to the largest output.

    Raises:
        UserError: an `opset` that the installed onnxruntime cannot run.
        RuntimeError: outputs differ from PyTorch's by more than `TOLERANCE`.
    """
    model = trained.model if isinstance(trained.model, HeadedEncoder) else trained.encoder
    output = model.output_name if isinstance(model, HeadedEncoder) else "features"
    example = _draw(trained.encoder, 2)
    with _quietly():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=["images"],
            output_names=[output],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    facts = {
        "mean": trained.normalisation.mean,
        "std": trained.normalisation.std,
        "image_size": trained.encoder.image_size,
        "classes": trained.classes,
    }
    for name, fact in facts.items():
        program.model.metadata_props[name] = as_json(fact, indent=None)
    size = sum(parameter.nbytes for parameter in model.parameters())
    program.save(path, external_data=size > _LARGEST_FILE)
    difference = max(_difference(model, path, _draw(trained.encoder, batch)) for batch in (1, 3))
    if not difference <= TOLERANCE:  # also true for NaN
        path.unlink()
        raise RuntimeError(f"{path} differs from PyTorch by {difference:.1e} of its largest output")
    return difference


def _difference(model: nn.Module, path: Path, images: Tensor) -> float:
    """The largest difference between onnxruntime and PyTorch, relative to the largest output."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a separate exception type per cause
        raise UserError(
            f"onnxruntime {onnxruntime.__version__} cannot run {path} ({str(error).splitlines()[0]}); "
            f"use opset={OLDEST_OPSET}, or a newer onnxruntime"
        ) from error
    actual = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    expected = model(images)
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max())


@contextmanager
def _quietly() -> Iterator[None]:
    """Silences the exporter's log messages and its warnings about deprecated PyTorch functions."""
    disabled = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _draw(encoder: SwinTransformer, batch: int) -> Tensor:
    """Normal noise at the encoder's image size."""
    shape = (batch, encoder.in_channels, *encoder.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(batch))
