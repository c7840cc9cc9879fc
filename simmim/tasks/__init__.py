"""Supervised tasks, one folder per task."""
