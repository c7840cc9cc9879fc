"""Reading all images ahead of a run."""
