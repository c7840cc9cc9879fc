"""SimMIM: an encoder, the mask token and a reconstruction head."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from simmim.models.heads import HeadKind, create_reconstruction_head
from simmim.models.swin import SwinTransformer


class SimMIM(nn.Module):
    """Masked image modelling: masked tokens become one learned vector, the head predicts pixels.

    SimMIM (arXiv 2111.09886), section 3.
    """

    def __init__(self, encoder: SwinTransformer, head: HeadKind = "linear") -> None:
        super().__init__()
        self.encoder = encoder
        self.mask_token = nn.Parameter(torch.empty(encoder.embed_dim))
        self.head_kind = head
        self.head = create_reconstruction_head(head, encoder)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self,
        images: Float[Tensor, "b c H W"],
        mask: Bool[Tensor, "b h w"],
        tokens: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "_images c _H _W"]:
        """Predicts the whole image from its visible part; `mask` has one entry a token.

        With `tokens` (of the last stage), predicts only their pixels; see `ReconstructionHead`.
        """
        features = self.encoder.encode(self.embed(images, mask))
        prediction: Tensor = self.head(features, tokens)
        return prediction

    def embed(
        self, images: Float[Tensor, "b c H W"], mask: Bool[Tensor, "b h w"]
    ) -> Float[Tensor, "b h w embed_c"]:
        """Embeds each image patch as a token; those True in `mask` become the mask token."""
        tokens = self.encoder.embed(images)
        return torch.where(mask.unsqueeze(-1), self.mask_token.to(tokens.dtype), tokens)
