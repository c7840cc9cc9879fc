"""Export to a file that `timm.create_model` loads, with the line that loads it."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from simmim.checkpoints.formats.compatibility import Family, published_family
from simmim.checkpoints.formats.timm import to_timm
from simmim.checkpoints.model_file import TrainedModel
from simmim.models.classifier import Classifier
from simmim.utils.held_out_crop import HeldOutCrop
from simmim.utils.normalization import Normalisation
from simmim.utils.sizes import Pair

# Width and stage 3 depth of timm's sizes, and the sizes of each name with window and image size.
_SIZES = {"tiny": (96, 6), "small": (96, 18), "base": (128, 18), "large": (192, 18)}
_V1 = {
    "patch4_window7_224": ("tiny", "small", "base", "large"),
    "patch4_window12_384": ("base", "large"),
}
_V2 = {
    "window8_256": ("tiny", "small", "base"),
    "window16_256": ("tiny", "small", "base"),
    "window12_192": ("base", "large"),
    "window12to16_192to256": ("base", "large"),
    "window12to24_192to384": ("base", "large"),
}
_TRANSFERRED = (12, 12, 12, 6)


def named_models(family: Family) -> dict[str, dict[str, Any]]:
    """The names of a family's models in timm, each with the arguments that it implies."""
    return {
        f"{family}_{size}_{sizes}": _named_arguments(size, sizes, family)
        for sizes, offered in (_V1 if family == "swin" else _V2).items()
        for size in offered
    }


def _named_arguments(size: str, sizes: str, family: Family) -> dict[str, Any]:
    width, depth = _SIZES[size]
    window, image = (part.rpartition("to")[2] for part in sizes.split("window")[1].split("_"))
    arguments: dict[str, Any] = {
        "img_size": int(image),
        "patch_size": 4,
        "in_chans": 3,
        "embed_dim": width,
        "depths": (2, 2, depth, 2),
        "num_heads": tuple(width * 2**stage // 32 for stage in range(4)),
        "window_size": int(window),
        "mlp_ratio": 4.0,
        # For these, timm only has weights for ImageNet-22K.
        "num_classes": 21841 if sizes == "window12_192" else 1000,
    }
    if family == "swinv2":
        arguments["pretrained_window_sizes"] = _TRANSFERRED if "to" in sizes else (0, 0, 0, 0)
    return arguments


def timm_arguments(trained: TrainedModel) -> tuple[str, dict[str, Any]]:
    """The closest timm name to a model, and the arguments of `timm.create_model` that differ.

    Raises:
        UserError: an encoder that timm's models do not support.
    """
    encoder = trained.encoder
    family = published_family(encoder, "timm")
    classifier = trained.model if isinstance(trained.model, Classifier) else None
    arguments: dict[str, Any] = {
        "img_size": _side(encoder.image_size),
        "patch_size": encoder.patch_size,
        "in_chans": encoder.in_channels,
        "embed_dim": encoder.embed_dim,
        "depths": encoder.depths,
        "num_heads": encoder.num_heads,
        "window_size": _side(encoder.window_size),
        "mlp_ratio": encoder.mlp_ratio,
        "num_classes": classifier.head.linear.out_features if classifier else 0,
    }
    if family == "swinv2":
        trained_windows = tuple(_side(pair) for pair in encoder.pretrained_window_sizes)
        # Zeros stand for the model's own windows; entries beyond its last stage are ignored.
        if encoder.pretrained_window_sizes == encoder.window_sizes:
            trained_windows = (0,) * max(4, len(encoder.depths))
        arguments["pretrained_window_sizes"] = trained_windows
    if trained.normalisation != Normalisation():
        mean, std = trained.normalisation
        arguments["pretrained_cfg_overlay"] = {"mean": mean, "std": std}
    changes = {
        name: {key: value for key, value in arguments.items() if value != known.get(key)}
        for name, known in named_models(family).items()
    }
    nearest = min(changes, key=lambda name: len(changes[name]))
    return nearest, changes[nearest]


def save_timm(trained: TrainedModel, path: Path) -> str:
    """Writes the weights under timm's names; returns the line of Python that loads them.

    For SimMIM, which timm does not have, only the encoder is written.

    Raises:
        UserError: an encoder that timm's models do not support.
    """
    name, arguments = timm_arguments(trained)
    model = trained.model if isinstance(trained.model, Classifier) else trained.encoder
    tensors = {key: tensor.contiguous() for key, tensor in to_timm(model.state_dict()).items()}
    crop: HeldOutCrop = trained.held_out_crop or {"crop_ratio": 1.0, "squash": False}
    facts = {
        "name": name,
        "arguments": arguments,
        "classes": trained.classes,
        "mean": trained.normalisation.mean,
        "std": trained.normalisation.std,
        "crop_pct": crop["crop_ratio"],
        "crop_mode": "squash" if crop["squash"] else "center",
    }
    save_file(tensors, path, metadata={"format": "pt", "timm": json.dumps(facts)})
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return f"timm.create_model({name!r}, checkpoint_path={str(path)!r}{given})"


def _side(pair: Pair) -> int | Pair:
    return pair[0] if pair[0] == pair[1] else pair
