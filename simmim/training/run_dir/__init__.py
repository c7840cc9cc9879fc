"""What a run directory records, and who may write there."""
