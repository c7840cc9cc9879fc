"""A classifier at another image and window size."""
