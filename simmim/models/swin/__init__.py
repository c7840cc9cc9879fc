"""Swin Transformer encoders in pure PyTorch, one concept per file."""

from simmim.models.swin.model import SwinTransformer
from simmim.models.swin.registry import ARCHITECTURES, adapt_encoder, create_encoder

__all__ = ["ARCHITECTURES", "SwinTransformer", "adapt_encoder", "create_encoder"]
