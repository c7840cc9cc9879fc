"""Benchmarks of training and data loading against other public implementations."""
