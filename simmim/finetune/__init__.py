"""Supervised fine-tuning; what it trains, logs and evaluates is in `simmim/tasks`."""
