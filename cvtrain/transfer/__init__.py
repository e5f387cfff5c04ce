"""Transfer learning: what of a trained network is fixed, and what learns how fast."""
