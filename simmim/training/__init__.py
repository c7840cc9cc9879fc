"""What every training run is made of."""
