"""Attention and activations, made fast for a device."""
