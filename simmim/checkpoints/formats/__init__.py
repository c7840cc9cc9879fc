"""Conversion between simmim's weight names and those of other programs."""
