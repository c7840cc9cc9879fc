"""Loggers of metrics, configuration and images."""
