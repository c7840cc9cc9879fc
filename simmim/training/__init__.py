"""What all stages that train share: modules, trainer, callbacks, loggers and run directory."""
