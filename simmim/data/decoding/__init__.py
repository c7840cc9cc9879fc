"""Decoding of image files to tensors."""
