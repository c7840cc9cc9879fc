"""The same step in each implementation: ours, timm, Hugging Face, torchvision, the official code.

All have the same architecture without stochastic depth, and take noise as input. timm and the
official code have no SimMIM for arbitrary sizes, so their encoders are wrapped in a plain one: a
learned mask token after the patch embedding, a 1×1 convolution with pixel shuffle, and L1 of the
whole image times the mask, as in the official `simmim.py`. Hugging Face has its own SimMIM,
torchvision has none.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from simmim.benchmark.workloads import CLASSES, Inputs, Workload
from simmim.models.classifier import Classifier
from simmim.models.reconstruction import loss_of_masked
from simmim.models.simmim import SimMIM
from simmim.models.swin import create_encoder
from simmim.models.swin.compile import compile_blocks
from simmim.utils.errors import UserError

Step = Callable[[Inputs], Tensor]


class Implementation(NamedTuple):
    """A model and its step, which returns the loss, or the logits for inference."""

    model: nn.Module
    step: Step


class PlainSimMIM(nn.Module):
    """SimMIM around the encoder of another implementation, as in the official code."""

    def __init__(
        self, embed: nn.Module, encode: Callable[[Tensor], Tensor], channels: int, features: int
    ) -> None:
        super().__init__()
        self.embed = embed
        self.encode = encode
        self.mask_token = nn.Parameter(torch.zeros(channels))
        self.head = nn.Sequential(nn.Conv2d(features, 32**2 * 3, 1), nn.PixelShuffle(32))

    def forward(
        self, images: Float[Tensor, "b c H W"], mask: Bool[Tensor, "b h w"]
    ) -> Float[Tensor, ""]:
        """The loss."""
        tokens = self.embed(images)
        hidden = mask.view(*tokens.shape[:-1], 1)
        tokens = torch.where(hidden, self.mask_token.to(tokens.dtype), tokens)
        features = self.encode(tokens)
        if features.ndim == 3:
            side = images.shape[-1] // 32
            features = features.view(len(images), side, side, -1)
        prediction = self.head(features.permute(0, 3, 1, 2))
        pixels = mask.repeat_interleave(4, 1).repeat_interleave(4, 2).unsqueeze(1)
        difference = (prediction.float() - images).abs() * pixels
        return difference.sum() / (pixels.sum() + 1e-5) / images.shape[1]


def create_ours(work: Workload, *, compiled: bool) -> Implementation:
    """This package; if `compiled`, each block is compiled separately."""
    encoder = create_encoder(work.model, image_size=work.image_size, window_size=work.window_size)
    if compiled:
        compile_blocks(encoder, "default")
    if work.kind != "simmim":
        return _classifier(Classifier(encoder, CLASSES), work)
    model = SimMIM(encoder)
    most = work.masks.most_tokens(encoder.stride)

    def step(inputs: Inputs) -> Tensor:
        assert inputs.mask is not None
        return loss_of_masked(model, inputs.images, inputs.mask, inputs.images, most)

    return Implementation(model, step)


def create_timm(work: Workload) -> Implementation:
    """The SwinTransformerV2 of timm."""
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    model: Any = SwinTransformerV2(
        img_size=work.image_size,
        window_size=work.window_size,
        num_classes=CLASSES,
        drop_path_rate=0.0,
        **_shape(work),
    )
    if work.kind != "simmim":
        return _classifier(model, work)
    encode = nn.Sequential(model.layers, model.norm)
    return _plain(PlainSimMIM(model.patch_embed, encode, *_widths(work)))


def create_hugging_face(work: Workload) -> Implementation:
    """Hugging Face's Swinv2ForMaskedImageModeling and Swinv2ForImageClassification."""
    try:
        import transformers
    except ImportError:
        raise UserError(
            'peers.names has hugging_face, which needs transformers; pip install "simmim[benchmark]", '
            "or use peers.names=[timm,torchvision]"
        ) from None

    config = transformers.Swinv2Config(
        image_size=work.image_size,
        window_size=work.window_size,
        encoder_stride=32,
        drop_path_rate=0.0,
        **_shape(work),
    )
    config.num_labels = CLASSES
    if work.kind != "simmim":
        classifier = transformers.Swinv2ForImageClassification(config)
        return _classifier(classifier, work, lambda output: output.logits)
    model = transformers.Swinv2ForMaskedImageModeling(config)

    def step(inputs: Inputs) -> Tensor:
        assert inputs.mask is not None
        loss: Tensor = model(inputs.images, bool_masked_pos=inputs.mask.flatten(1)).loss
        return loss

    return Implementation(model, step)


def create_torchvision(work: Workload) -> Implementation | None:
    """The SwinTransformer of torchvision with V2 blocks; None for SimMIM, which it lacks."""
    if work.kind == "simmim":
        return None
    from torchvision.models import swin_transformer

    model = swin_transformer.SwinTransformer(
        patch_size=[4, 4],
        window_size=[work.window_size] * 2,
        num_classes=CLASSES,
        stochastic_depth_prob=0.0,
        block=swin_transformer.SwinTransformerBlockV2,
        downsample_layer=swin_transformer.PatchMergingV2,
        **_shape(work),
    )
    return _classifier(model, work)


def create_official(work: Workload, checkout: Path) -> Implementation:
    """The SwinTransformerV2 of microsoft/Swin-Transformer, loaded from a checkout."""
    path = checkout / "models" / "swin_transformer_v2.py"
    if not path.is_file():
        raise UserError(
            f"peers.official={checkout} has no models/swin_transformer_v2.py; "
            "give a checkout of github.com/microsoft/Swin-Transformer"
        )
    spec = importlib.util.spec_from_file_location("official_swin_transformer_v2", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    model = module.SwinTransformerV2(
        img_size=work.image_size,
        window_size=work.window_size,
        num_classes=CLASSES,
        drop_path_rate=0.0,
        **_shape(work),
    )
    if work.kind != "simmim":
        return _classifier(model, work)
    encode = nn.Sequential(*model.layers, model.norm)
    return _plain(PlainSimMIM(model.patch_embed, encode, *_widths(work)))


class Implementations(NamedTuple):
    """The implementations to compare: names of `peers`, and the checkout of the official code."""

    peers: tuple[str, ...]
    official: Path | None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all implementations, ours first."""
        given = ("official",) if self.official is not None else ()
        return ("ours", *self.peers, *given)

    def create(self, name: str, work: Workload, *, compiled: bool = False) -> Implementation | None:
        """Creates an implementation, or None if it does not support the workload.

        If `compiled`, peers are compiled as a whole.

        Raises:
            UserError: an unknown name, or an invalid checkout of the official code.
        """
        torch.manual_seed(0)
        if name == "ours":
            return create_ours(work, compiled=compiled)
        if name == "official":
            assert self.official is not None
            implementation: Implementation | None = create_official(work, self.official)
        elif name in PEERS:
            implementation = PEERS[name](work)
        else:
            raise UserError(f"peers.names={name} is unknown; use {', '.join(PEERS)}")
        if implementation is not None and compiled:
            implementation.model.compile(dynamic=False)
        return implementation


PEERS: dict[str, Callable[[Workload], Implementation | None]] = {
    "timm": create_timm,
    "hugging_face": create_hugging_face,
    "torchvision": create_torchvision,
}


def _shape(work: Workload) -> dict[str, Any]:
    shape = work.architecture
    return {
        "embed_dim": shape["embed_dim"],
        "depths": list(shape["depths"]),
        "num_heads": list(shape["num_heads"]),
    }


def _widths(work: Workload) -> tuple[int, int]:
    first = work.architecture["embed_dim"]
    return first, first * 2 ** (len(work.architecture["depths"]) - 1)


def _plain(model: PlainSimMIM) -> Implementation:
    return Implementation(model, lambda inputs: model(inputs.images, inputs.mask))


def _classifier(
    model: nn.Module, work: Workload, logits: Callable[[Any], Tensor] = lambda output: output
) -> Implementation:
    def classify(inputs: Inputs) -> Tensor:
        return F.cross_entropy(logits(model(inputs.images)).float(), inputs.labels)

    def infer(inputs: Inputs) -> Tensor:
        return logits(model(inputs.images))

    return Implementation(model, classify if work.kind == "classification" else infer)
