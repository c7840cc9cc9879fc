"""Modules: encoders, the heads and masks for training them, and the losses."""
