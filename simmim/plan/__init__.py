"""What a training step takes: memory by part and moment, and arithmetic; found without running it."""
