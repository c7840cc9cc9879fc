"""What any part may need, a topic a file."""
