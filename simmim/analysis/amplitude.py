"""Activation amplitude by depth: Swin Transformer V2 (arXiv 2111.09883), figure 2.

With pre-norm, branch outputs are added to the main branch without normalisation, and amplitudes
grow with depth; with res-post-norm, each branch is normalised before it is added (section 3.2).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from simmim.models.swin import SwinTransformer
from simmim.models.swin.hooks import (
    block_outputs,
    eval_mode,
    feature_variance,
    named_blocks,
    observe,
)


class BlockAmplitude(NamedTuple):
    """The variances of one block's activations, computed by `feature_variance`.

    Attributes:
        name: for example `stage1_block1`.
        output: variance of the main branch after the block.
        attention: variance of what the attention branch adds to the main branch.
        mlp: variance of what the MLP branch adds to the main branch.
    """

    name: str
    output: float
    attention: float
    mlp: float


def activation_amplitudes(
    encoder: SwinTransformer, images: Float[Tensor, "b c H W"]
) -> list[BlockAmplitude]:
    """The amplitudes of every block in order, for one batch of normalised images."""
    outputs: dict[str, float] = {}
    branches: dict[str, list[float]] = {name: [] for name in named_blocks(encoder)}

    def see_output(name: str, features: Tensor) -> None:
        outputs[name] = float(feature_variance(features))

    def see_branch(name: str, branch: Tensor) -> None:
        branches[name].append(float(feature_variance(branch)))

    # Drop path is the last module of a branch; it runs for attention first, then for the MLP.
    drop_paths = {name: block.drop_path for name, block in named_blocks(encoder).items()}
    with (
        eval_mode(encoder),
        observe(block_outputs(encoder), see_output),
        observe(drop_paths, see_branch),
    ):
        encoder(images)
    return [BlockAmplitude(name, outputs[name], *branches[name]) for name in outputs]


def amplitude_ratio(blocks: Sequence[BlockAmplitude]) -> float:
    """The largest output amplitude of the blocks over the smallest; 10⁴ for pre-norm Swin-L (paper)."""
    outputs = [block.output for block in blocks]
    return max(outputs) / min(outputs) if min(outputs) > 0 else math.inf
