"""Models as other programs load them."""
