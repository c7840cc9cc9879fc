"""What the pages of the documentation tell a reader to type, and how tests type it."""
