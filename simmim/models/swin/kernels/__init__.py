"""Device-specific fast implementations of attention and activations."""
