"""The export stage: writes a trained model in a format that another program loads."""

from pathlib import Path
from typing import Any, Literal

import torch

from simmim.checkpoints.model_file import TrainedModel, save_encoder, save_labelled
from simmim.checkpoints.read import weights_file
from simmim.checkpoints.sharded.merge import is_sharded, read_whole
from simmim.export.hugging_face import save_hugging_face
from simmim.export.onnx import require_onnx, save_onnx
from simmim.export.timm import save_timm
from simmim.models.classifier import Classifier, HeadedEncoder
from simmim.models.simmim import SimMIM
from simmim.tasks.load_model import load_model
from simmim.utils.console import say
from simmim.utils.errors import UserError
from simmim.utils.sizes import show

Format = Literal["safetensors", "timm", "hf", "onnx", "checkpoint"]


def export(
    *,
    checkpoint: str | None,
    format: Format | None,
    output: str | None,
    opset: int,
    overwrite: bool,
    run_dir: str,
) -> dict[str, Any]:
    """Writes a model for another program, logs how to load it, and returns these as a dict.

    Raises:
        UserError: no checkpoint or format, or a model that the other program does not support.
    """
    if checkpoint is None:
        raise UserError(
            "checkpoint is not set; use checkpoint=RUN, a run's directory or any file of weights in it"
        )
    if format is None:
        raise UserError("format is not set; use format=safetensors, timm, hf, onnx or checkpoint")
    if format == "checkpoint":
        return export_checkpoint(Path(checkpoint), output, overwrite, Path(run_dir))
    if format == "onnx":
        require_onnx(opset)
    trained = load_model(checkpoint)
    say(f"{describe(trained)}, from {checkpoint}")
    path = output_path(format, output, trained, run_dir)
    written_file = path / "model.safetensors" if format == "hf" else path
    if written_file.resolve() == weights_file(checkpoint).resolve():
        raise UserError(f"output={path} would overwrite the checkpoint; use another output=")
    if written_file.exists() and not overwrite:
        raise UserError(f"{written_file} exists; use another output=, or overwrite=true")
    path.parent.mkdir(parents=True, exist_ok=True)
    written: dict[str, Any] = {"format": format, "output": str(path)}
    if format == "safetensors":
        written["load"] = save_own(trained, path)
    elif format == "timm":
        written["load"] = save_timm(as_plain(trained), path)
    elif format == "hf":
        plain = as_plain(trained)
        written["load"] = save_hugging_face(plain, path, find_problem_type(trained))
    else:
        written["difference"] = save_onnx(trained, path, opset)
        say(f"differs from PyTorch by {written['difference']:.1e} of its largest output at most")
        written["load"] = f"onnxruntime.InferenceSession({str(path)!r})"
    say(f"written to {path}; load it with")
    say(f"  {written['load']}")
    return written


def export_checkpoint(
    checkpoint: Path, output: str | None, overwrite: bool, run_dir: Path
) -> dict[str, Any]:
    """Merges a sharded checkpoint into one file, from which a run under any strategy can resume.

    Raises:
        UserError: the checkpoint is missing, damaged or already one file, or the output exists.
    """
    last = checkpoint / "checkpoints" / "last.ckpt"
    sharded = last if is_sharded(last) else checkpoint
    if not is_sharded(sharded):
        missing = "does not exist" if not sharded.exists() else "is no sharded checkpoint"
        raise UserError(
            f"checkpoint={checkpoint} {missing}; format=checkpoint is for the folders that "
            "trainer=deepspeed_zero1, or trainer=fsdp trainer.sharded_checkpoints=true, writes, such "
            "as RUN/checkpoints/last.ckpt"
        )
    path = run_dir / "whole.ckpt" if output is None else Path(output)
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; use another output=, or overwrite=true")
    whole = read_whole(sharded)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.partial")
    torch.save(whole, beside)
    beside.replace(path)
    say(f"step {whole['global_step']} of {sharded}, whole: {path}; go on from it with")
    load = f"resume={path} and the run's own options"
    say(f"  {load}")
    return {"format": "checkpoint", "output": str(path), "load": load}


def save_own(trained: TrainedModel, path: Path) -> str:
    """Writes simmim's own file: a task's model, or SimMIM's encoder. Returns how to load it."""
    if isinstance(trained.model, HeadedEncoder):
        save_labelled(
            trained.model,
            path,
            trained.classes,
            trained.normalisation,
            held_out_crop=trained.held_out_crop,
            task=trained.task,
        )
    else:
        save_encoder(trained.encoder, path, trained.normalisation)
    return f"simmim.load_{trained.kind}({str(path)!r})"


def as_plain(trained: TrainedModel) -> TrainedModel:
    """The model as other programs have it, whose heads are one linear layer."""
    if isinstance(trained.model, Classifier) or not isinstance(trained.model, HeadedEncoder):
        return trained
    # Imports Lightning, for which a classifier need not wait.
    from simmim.tasks.task import task_named

    return trained._replace(model=task_named(trained.task).as_classifier(trained.model))


def find_problem_type(trained: TrainedModel) -> str | None:
    """Hugging Face's name for the model's task, None for its default: one class an image."""
    if trained.kind != "model":
        return None
    from simmim.tasks.task import task_named

    return task_named(trained.task).problem_type


def describe(trained: TrainedModel) -> str:
    """Describes a model: `a classifier of 1000 classes for images of 256`."""
    kind = "an encoder"
    if isinstance(trained.model, HeadedEncoder):
        kind = f"a classifier of {trained.outputs} classes"
        if trained.kind != "classifier":
            kind = f"a model of task={trained.task} with {trained.outputs} outputs"
    elif isinstance(trained.model, SimMIM):
        kind = "an encoder with SimMIM's mask token and head"
    return f"{kind} for images of {show(trained.encoder.image_size)}"


def output_path(format: Format, output: str | None, trained: TrainedModel, run_dir: str) -> Path:
    """The path to write to: `output`, a file or folder, or by default a name in `run_dir`.

    Raises:
        UserError: the file's suffix does not match the format, or `output` of hf is not a folder.
    """
    names = {
        "safetensors": f"{trained.kind}.safetensors",
        "timm": "timm.safetensors",
        "hf": "hf",
        "onnx": "model.onnx",
    }
    name = names[format]
    if output is None:
        return Path(run_dir) / name
    path = Path(output)
    if format == "hf":
        if path.is_file():
            raise UserError(
                f"output={output} is a file, and format=hf writes a folder; use another"
            )
        return path
    if path.is_dir() or not path.suffix:
        return path / name
    if path.suffix != Path(name).suffix:
        raise UserError(
            f"output={output} does not end in {Path(name).suffix}, by which format={format} is known; "
            f"use output={path.with_suffix(Path(name).suffix)}"
        )
    return path
