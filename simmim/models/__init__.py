"""Modules: encoders, and what stands around them in training."""
