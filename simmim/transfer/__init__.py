"""Transfer of a labelled model to another image and window size."""
