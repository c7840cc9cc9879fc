"""The command line: from what is typed to a stage."""
