"""A run's page: what it learned, how well, and on what, in one file that opens anywhere."""
