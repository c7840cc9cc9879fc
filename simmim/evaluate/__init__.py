"""Judging a model: by its classes, its neighbours, or a linear probe."""
