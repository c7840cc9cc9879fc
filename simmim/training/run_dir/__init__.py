"""The run directory: its records, its lock, and resuming from it."""
