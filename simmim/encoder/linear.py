"""A linear layer whose bias the compiler adds, on a CPU, where it adds anything else."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear`, and to `torch.compile` on a CPU a product and a sum.

    Together they are one call there, which takes up to half as long again as the product alone: the
    bias is laid out first, once for each row. A sum is fused with what follows.
    """

    def forward(self, features: Float[Tensor, "*rows c"]) -> Float[Tensor, "*rows out_c"]:
        """Transforms the last dimension."""
        is_compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
        if not (is_compiled and features.is_cpu):
            return super().forward(features)
        product = F.linear(features, self.weight)
        return product + self.bias.to(product.dtype)
