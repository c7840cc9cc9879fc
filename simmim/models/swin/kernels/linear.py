"""A linear layer with a bias that the compiler can fuse with other operations on a CPU."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from simmim.models.swin.tracing import is_traced


def is_compiled_on_cpu(tensor: Tensor) -> bool:
    """Whether `torch.compile` is tracing operations on this CPU tensor, and not for an export."""
    return torch.compiler.is_compiling() and not is_traced() and tensor.is_cpu


class Linear(nn.Linear):
    """`nn.Linear`, which `torch.compile` on a CPU sees as a matrix product and an addition.

    A single call with the bias takes up to 1.5 times as long as the product alone there, because
    the bias is first copied to every row. A separate addition is fused with the operations that
    follow.
    """

    def forward(self, features: Float[Tensor, "*rows c"]) -> Float[Tensor, "*rows out_c"]:
        """Applies the linear layer to the last dimension."""
        if not is_compiled_on_cpu(features):
            return super().forward(features)
        product = F.linear(features, self.weight)
        return product + self.bias.to(product.dtype)
