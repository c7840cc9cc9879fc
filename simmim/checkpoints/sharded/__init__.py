"""Checkpoints of which each process wrote a part."""
