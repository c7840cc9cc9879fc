"""Where metrics, configuration and images are logged."""
