"""What a labelled model does, a folder a task."""
