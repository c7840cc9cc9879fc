"""Transfer of a classifier to another image and window size."""
