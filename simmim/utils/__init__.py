"""Helpers for every part of simmim, one topic per file."""
