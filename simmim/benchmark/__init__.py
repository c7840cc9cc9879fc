"""How fast training and loading are, beside other public implementations on the same work."""
