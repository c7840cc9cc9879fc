"""Handling of images that cannot be read."""
