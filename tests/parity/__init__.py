"""Our models against the public implementations, with the same weights."""
