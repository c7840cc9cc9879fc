"""Optimiser, parameter groups and schedules."""

from simmim.training.optim.adamw import AdamWRecipe, describe_lr

__all__ = ["AdamWRecipe", "describe_lr"]
