"""Hugging Face's `config.json` and `preprocessor_config.json`, which describe a folder's model.

They are written without transformers: it need not be installed, and all its versions can read them.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from simmim.checkpoints.class_names import as_synsets
from simmim.checkpoints.formats.compatibility import SWITCHES, Family, blocks, published_family
from simmim.checkpoints.metadata import EncoderDescription, describe_encoder
from simmim.models.classifier import Classifier, HeadedEncoder
from simmim.models.simmim import SimMIM
from simmim.models.swin import SwinTransformer
from simmim.utils.errors import UserError
from simmim.utils.held_out_crop import HeldOutCrop
from simmim.utils.normalization import IMAGENET_MEAN, IMAGENET_STD, Normalisation
from simmim.utils.sizes import Pair, show

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"

# Options of Hugging Face for which simmim's encoder supports one value only.
_FIXED: dict[str, Any] = {
    "use_absolute_embeddings": False,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
# Hugging Face's defaults for what a configuration leaves out.
_DEFAULTS: dict[str, Any] = {
    **_FIXED,
    "image_size": 224,
    "patch_size": 4,
    "num_channels": 3,
    "embed_dim": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
    "mlp_ratio": 4.0,
    "drop_path_rate": 0.1,
}


def create_config(
    model: SwinTransformer | HeadedEncoder | SimMIM,
    classes: Sequence[str],
    problem_type: str | None = None,
) -> dict[str, Any]:
    """The content of `config.json`; by `problem_type` their model chooses its loss.

    Raises:
        UserError: Hugging Face has no such model.
    """
    encoder = model if isinstance(model, SwinTransformer) else model.encoder
    family = published_family(encoder, "Hugging Face")
    _require_square_windows(encoder, family)
    kind = _kind(model)
    if kind == "ForMaskedImageModeling" and encoder.image_size[0] != encoder.image_size[1]:
        raise UserError(
            f"Hugging Face reconstructs square images only, and this is {show(encoder.image_size)}; "
            "use format=safetensors, or export the run's encoder.safetensors"
        )
    if isinstance(model, SimMIM) and model.head_kind != "linear":
        raise UserError(
            f"Hugging Face reconstructs with a linear head, and this was pretrained with "
            f"head={model.head_kind}; export the run's encoder.safetensors, or use format=safetensors"
        )
    config: dict[str, Any] = {
        "architectures": [("Swinv2" if family == "swinv2" else "Swin") + kind],
        "model_type": family,
        "image_size": _side(encoder.image_size),
        "patch_size": encoder.patch_size,
        "num_channels": encoder.in_channels,
        "embed_dim": encoder.embed_dim,
        "depths": list(encoder.depths),
        "num_heads": list(encoder.num_heads),
        "window_size": encoder.window_size[0],
        "mlp_ratio": encoder.mlp_ratio,
        "drop_path_rate": encoder.drop_path_rate,
        "encoder_stride": encoder.stride,
        **_FIXED,
    }
    if family == "swinv2":
        config["pretrained_window_sizes"] = _pretrained_windows(encoder)
    if isinstance(model, Classifier):
        outputs = model.head.linear.out_features
        labels = list(classes) or [f"LABEL_{number}" for number in range(outputs)]
        config["id2label"] = {str(number): label for number, label in enumerate(labels)}
        config["label2id"] = {label: number for number, label in enumerate(labels)}
        if problem_type is not None:
            config["problem_type"] = problem_type
    return config


def create_preprocessor(
    encoder: SwinTransformer, normalisation: Normalisation, crop: HeldOutCrop | None
) -> dict[str, Any]:
    """The content of `preprocessor_config.json`: the crop in `crop`, or the largest centred one.

    (If the encoder's image size is not square, a slightly smaller part of the image is shown.)
    """
    height, width = encoder.image_size
    crop = crop or {"crop_ratio": 1.0, "squash": False}
    shortest = {"shortest_edge": math.floor(max(height, width) / crop["crop_ratio"])}
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width} if crop["squash"] else shortest,
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(normalisation.mean),
        "image_std": list(normalisation.std),
        "do_convert_rgb": encoder.in_channels == 3,
    }


def describe_folder(folder: Path) -> EncoderDescription:
    """Describes the encoder of a Hugging Face folder, its classes and the normalisation of its input.

    Raises:
        UserError: the model is not a Swin, or is a Swin that simmim's encoder does not support.
    """
    config = _DEFAULTS | _read(folder / CONFIG)
    family = config.get("model_type")
    if family not in SWITCHES:
        raise UserError(
            f"{folder / CONFIG} describes a {family}; give a folder of {' or '.join(SWITCHES)}"
        )
    for name, fixed in _FIXED.items():
        if config[name] != fixed:
            raise UserError(
                f"{folder / CONFIG} has {name}={config[name]}, and simmim's encoder has {fixed}; "
                "give another model"
            )
    arguments: dict[str, Any] = {
        "embed_dim": config["embed_dim"],
        "depths": config["depths"],
        "num_heads": config["num_heads"],
        "image_size": config["image_size"],
        "window_size": config["window_size"],
        "patch_size": config["patch_size"],
        "in_channels": config["num_channels"],
        "mlp_ratio": config["mlp_ratio"],
        "drop_path_rate": config["drop_path_rate"],
        **SWITCHES[family],
    }
    with torch.device("meta"):
        encoder = SwinTransformer(**arguments)
        # A zero stands for the model's own window.
        given = config.get("pretrained_window_sizes") or [0] * len(encoder.depths)
        windows = [size or own for size, own in zip(given, encoder.window_sizes, strict=False)]
        encoder = SwinTransformer(**arguments, pretrained_window_sizes=windows)
    description = describe_encoder(encoder, _read_normalisation(folder, encoder.in_channels))
    if any("ImageClassification" in name for name in config.get("architectures") or ()):
        labels = config.get("id2label") or {}
        names = tuple(labels[number] for number in sorted(labels, key=int))
        if not all(name.startswith("LABEL_") for name in names):
            description["classes"] = list(as_synsets(names))
    return description


def _require_square_windows(encoder: SwinTransformer, family: Family) -> None:
    """Raises UserError if windows or shifts differ between axes or, in V1, windows between stages."""
    for block in blocks(encoder):
        grid = block.grid
        if any(len(set(pair)) > 1 for pair in (grid.window_size, grid.shift_size)):
            raise UserError(
                f"Hugging Face has one window and shift for both axes, and on the feature map "
                f"{show(grid.feature_size)} the window is {show(grid.window_size)}, shifted by "
                f"{grid.shift_size[0]}×{grid.shift_size[1]}; use format=timm or format=onnx"
            )
        if family == "swin" and grid.window_size != encoder.window_size:
            raise UserError(
                f"Hugging Face's Swin V1 cannot shrink a window, and the window "
                f"{show(encoder.window_size)} exceeds the feature map {show(grid.feature_size)}; "
                "use format=timm or format=onnx"
            )


def _pretrained_windows(encoder: SwinTransformer) -> list[int]:
    """One side length per stage; 0 where it is the model's own window."""
    sizes = []
    for pretrained, own in zip(encoder.pretrained_window_sizes, encoder.window_sizes, strict=True):
        if pretrained != own and (pretrained[0] != pretrained[1] or pretrained[0] == 1):
            raise UserError(
                f"Hugging Face has no pretrained window of {show(pretrained)} for a window of "
                f"{show(own)}; use format=timm or format=onnx"
            )
        sizes.append(0 if pretrained == own else pretrained[0])
    return sizes


def _kind(model: SwinTransformer | HeadedEncoder | SimMIM) -> str:
    if isinstance(model, Classifier):
        return "ForImageClassification"
    return "ForMaskedImageModeling" if isinstance(model, SimMIM) else "Model"


def _read_normalisation(folder: Path, channels: int) -> Normalisation:
    """The preprocessor's normalisation; without one, ImageNet's, averaged if not for 3 channels."""
    path = folder / PREPROCESSOR
    content = _read(path) if path.is_file() else {}
    known = channels == len(IMAGENET_MEAN)
    mean, std = (
        content.get(key, of_colours if known else [sum(of_colours) / len(of_colours)] * channels)
        for key, of_colours in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD))
    )
    if len(mean) != channels or len(std) != channels:
        raise UserError(
            f"{path} has {len(mean)} means and {len(std)} standard deviations, and the model takes "
            f"{channels} channels; give one for each"
        )
    return Normalisation(tuple(mean), tuple(std))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; copy it again")
    return content


def _side(pair: Pair) -> int | list[int]:
    return pair[0] if pair[0] == pair[1] else list(pair)
