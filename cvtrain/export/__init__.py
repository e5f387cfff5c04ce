"""What of a trained model other programs can take."""
