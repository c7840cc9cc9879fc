"""The command line: from typed options to a running stage."""
