"""What a pretrained model fills in, drawn for a user's own images."""
