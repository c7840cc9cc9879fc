"""Predicts a training step's memory, by part, and its FLOPs without running it."""
