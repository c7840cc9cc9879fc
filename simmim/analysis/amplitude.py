"""How large activations are by depth: Swin Transformer V2 (arXiv 2111.09883), figure 2.

With pre-norm, what a block adds to the main branch is as large as its weights make it, and amplitudes
grow with depth; with res-post-norm each branch is normalised before it is added (section 3.2).
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
    """Of one block, variances as `feature_variance` takes them, in squared units of activations.

    Attributes:
        name: `stage1_block1`.
        output: of the main branch after the block.
        attention: of what its attention branch adds to the main branch.
        mlp: of what its MLP branch adds.
    """

    name: str
    output: float
    attention: float
    mlp: float


def activation_amplitudes(
    encoder: SwinTransformer, images: Float[Tensor, "b c H W"]
) -> list[BlockAmplitude]:
    """The amplitudes of every block in order, of normalised images that go through in one batch."""
    outputs: dict[str, float] = {}
    branches: dict[str, list[float]] = {name: [] for name in named_blocks(encoder)}

    def see_output(name: str, features: Tensor) -> None:
        outputs[name] = float(feature_variance(features))

    def see_branch(name: str, branch: Tensor) -> None:
        branches[name].append(float(feature_variance(branch)))

    # Drop path is the last that a branch passes through: first attention's, then the MLP's.
    drop_paths = {name: block.drop_path for name, block in named_blocks(encoder).items()}
    with (
        eval_mode(encoder),
        observe(block_outputs(encoder), see_output),
        observe(drop_paths, see_branch),
    ):
        encoder(images)
    return [BlockAmplitude(name, outputs[name], *branches[name]) for name in outputs]


def amplitude_ratio(blocks: Sequence[BlockAmplitude]) -> float:
    """The largest of the blocks' outputs over the smallest: 10⁴ for pre-norm Swin-L in the paper."""
    outputs = [block.output for block in blocks]
    return max(outputs) / min(outputs) if min(outputs) > 0 else math.inf
