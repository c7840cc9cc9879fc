"""Checks that all images can be read, before a run."""
