"""Activations on their way through a model: how large they are, and where they cease to be finite."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from simmim.models.swin import SwinTransformer
from simmim.models.swin.blocks import Stage, SwinBlock


def named_blocks(encoder: SwinTransformer) -> dict[str, SwinBlock]:
    """The blocks in order, by `stage1_block1`, both counted from 1."""
    named = {}
    for number, stage in enumerate(encoder.stages, start=1):
        assert isinstance(stage, Stage)
        for place, block in enumerate(stage.blocks, start=1):
            assert isinstance(block, SwinBlock)
            named[f"stage{number}_block{place}"] = block
    return named


def block_outputs(encoder: SwinTransformer) -> dict[str, nn.Module]:
    """What each block's output passes through, by the block's name."""
    outputs = {}
    for number, stage in enumerate(encoder.stages, start=1):
        assert isinstance(stage, Stage)
        for place, output in enumerate(stage.outputs, start=1):
            outputs[f"stage{number}_block{place}"] = output
    return outputs


def feature_variance(features: Float[Tensor, "b h w c"]) -> Float[Tensor, ""]:
    """Each channel's variance over images and places, in the mean over channels.

    The amplitude of Swin Transformer V2 (arXiv 2111.09883), figure 2.
    """
    tokens = features.detach().float().flatten(0, 2)
    # On the CPU nine times as fast as torch.var.
    return (tokens - tokens.mean(dim=0)).square().mean()


@contextmanager
def observe(modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the block, `see` is called with the name and the output of each module that has run."""

    def hook_of(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda module, inputs, output: see(name, output)

    handles = [module.register_forward_hook(hook_of(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def eval_mode(encoder: SwinTransformer) -> Iterator[None]:
    """Within the block the encoder evaluates: no gradients, nothing random, nothing compiled."""
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class Amplitude(NamedTuple):
    """Of a block's output: `feature_variance`, and the largest absolute value."""

    variance: float
    largest: float


class Inspection(NamedTuple):
    """What a forward pass did.

    Attributes:
        amplitudes: of each block.
        origin: the first module whose output is not finite, by its place in the order of the pass
            and by name; None where all are finite.
        suspects: images of which a block's output is not finite.
    """

    amplitudes: dict[str, Amplitude]
    origin: tuple[int, str] | None
    suspects: Bool[Tensor, " b"]


@torch.no_grad()
def inspect_forward(
    model: nn.Module, encoder: SwinTransformer, forward: Callable[[], object]
) -> Inspection:
    """Runs `forward`, which takes one batch through the model, and looks at all modules' outputs.

    A module that has run stands after those that it is made of. Nothing compiled runs.
    """
    blocks: dict[str, tuple[Tensor, Tensor]] = {}
    finite_images: list[Tensor] = []
    finite: dict[str, Tensor] = {}

    def see_block(name: str, features: Tensor) -> None:
        blocks[name] = feature_variance(features), features.abs().max().float()
        finite_images.append(features.isfinite().flatten(1).all(dim=1))

    def see(name: str, output: Tensor) -> None:
        finite.setdefault(name, output.isfinite().all())

    with (
        observe(dict(model.named_modules()), see),
        observe(block_outputs(encoder), see_block),
        torch.compiler.set_stance("force_eager"),
    ):
        forward()
    broken = [
        place for place, flag in enumerate(torch.stack([*finite.values()]).tolist()) if not flag
    ]
    return Inspection(
        {
            name: Amplitude(float(variance), float(largest))
            for name, (variance, largest) in blocks.items()
        },
        (broken[0], list(finite)[broken[0]]) if broken else None,
        ~torch.stack(finite_images).all(dim=0).cpu(),
    )
