"""A run's report: its metrics, verdict, reconstructions and environment in one standalone HTML file."""
