"""What becomes of images that cannot be read."""
