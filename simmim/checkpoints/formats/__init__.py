"""Weights under other programs' names."""
