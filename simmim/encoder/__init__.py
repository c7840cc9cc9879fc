"""Swin Transformer encoders, pure PyTorch, one idea a file."""

from simmim.encoder.architectures import ARCHITECTURES, adapt_encoder, create_encoder
from simmim.encoder.swin import SwinTransformer

__all__ = ["ARCHITECTURES", "SwinTransformer", "adapt_encoder", "create_encoder"]
