"""Other implementations' models of the sizes of an encoder of ours, without values yet."""

from collections.abc import Sequence
from typing import Any

from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.swin_transformer_v2 import SwinTransformerV2 as TimmSwinV2
from torch import Tensor
from transformers import PreTrainedModel, SwinConfig, Swinv2Config

from simmim.checkpoints import to_hf
from simmim.models.swin import SwinTransformer

from .compare import build


def timm_swin(encoder: SwinTransformer, **arguments: Any) -> TimmSwin:
    """timm's V1; a bare encoder unless `num_classes` is given."""
    return build(lambda: TimmSwin(**_timm_sizes(encoder) | arguments))


def timm_swinv2(
    encoder: SwinTransformer, pretrained: Sequence[int] | None = None, **arguments: Any
) -> TimmSwinV2:
    """timm's V2; a bare encoder unless `num_classes` is given."""
    windows = tuple(pretrained or (0,) * len(encoder.depths))
    sizes = _timm_sizes(encoder) | {"pretrained_window_sizes": windows}
    return build(lambda: TimmSwinV2(**sizes | arguments))


def swin_config(encoder: SwinTransformer, **arguments: Any) -> SwinConfig:
    """Hugging Face's configuration of V1."""
    return SwinConfig(**_hugging_face_sizes(encoder), **arguments)


def swinv2_config(
    encoder: SwinTransformer, pretrained: Sequence[int] | None = None, **arguments: Any
) -> Swinv2Config:
    """Hugging Face's configuration of V2."""
    windows = list(pretrained or (0,) * len(encoder.depths))
    return Swinv2Config(
        **_hugging_face_sizes(encoder), pretrained_window_sizes=windows, **arguments
    )


def load_hugging_face(
    model: type[PreTrainedModel], config: SwinConfig | Swinv2Config, ours: dict[str, Tensor]
) -> Any:
    """Builds one of their models with our weights, as from a file of theirs; all must be used."""
    loaded, report = model.from_pretrained(
        None, config=config, state_dict=to_hf(ours), output_loading_info=True
    )
    assert not any(report.values()), report
    return loaded.eval()


def _timm_sizes(encoder: SwinTransformer) -> dict[str, Any]:
    return {
        "img_size": encoder.image_size,
        "window_size": encoder.window_size,
        "embed_dim": encoder.embed_dim,
        "depths": encoder.depths,
        "num_heads": encoder.num_heads,
        "num_classes": 0,
    }


def _hugging_face_sizes(encoder: SwinTransformer) -> dict[str, Any]:
    height, width = encoder.image_size
    return {
        "image_size": height if height == width else (height, width),
        "window_size": encoder.window_size[0],
        "embed_dim": encoder.embed_dim,
        "depths": list(encoder.depths),
        "num_heads": list(encoder.num_heads),
        "encoder_stride": encoder.stride,
        "drop_path_rate": 0.0,
    }
