"""What all training stages share: tasks, trainer, callbacks, loggers and run directory."""
