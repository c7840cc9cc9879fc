"""What features and answers come to: pure functions on tensors, which know no model and no data."""
