"""Sharded checkpoints, of which each process wrote a part."""
