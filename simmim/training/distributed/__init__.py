"""How processes share the work."""
